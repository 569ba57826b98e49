"""Free memory goes back to the system while the page runs."""

import platform
import threading

import pytest

from dashboard import memory


def test_what_is_free_is_handed_back_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = threading.Semaphore(0)
    monkeypatch.setattr(memory, "TRIM_SECONDS", 0.01)
    monkeypatch.setattr(memory, "_trim", lambda trim: trimmed.release() if trim(0) in (0, 1) else None)
    memory.keep_small()
    assert trimmed.acquire(timeout=5) == (platform.libc_ver()[0] == "glibc")


def test_the_loop_waits_between_two_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def stop(padding: int) -> int:
        if len(asked) > 4:
            raise StopIteration
        return padding

    monkeypatch.setattr(memory.time, "sleep", asked.append)
    with pytest.raises(StopIteration):
        memory._trim(stop)
    assert asked == [memory.TRIM_SECONDS] * 5
