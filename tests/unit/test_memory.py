"""Free memory goes back to the system while the page runs, and a tab holds no more for having been redrawn."""

import asyncio
import platform
import threading

import pytest

from dashboard import memory  # isort: skip  (sets the environment before gradio is imported)

import gradio as gr
from gradio.state_holder import SessionState


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


def held_after_updates(n: int) -> tuple[SessionState, gr.Blocks]:
    """Return what a tab holds after `n` calls that read a field and update it."""
    with gr.Blocks() as page:
        field = gr.Number(1, minimum=0)
        field.change(lambda value: gr.update(value=value + 1, maximum=value + 2), field, field)
    state = SessionState(page)
    (function,) = page.fns.values()
    for number in range(n):
        asyncio.run(page.process_api(function, [number], state=state))
    assert state[field._id].maximum == n + 1  # the field of this tab was replaced each time
    return state, page


def test_replaced_components_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SessionState, "__setitem__", memory._PUT)
    kept, page = held_after_updates(4)
    assert len(kept.blocks_config.blocks) == len(page.blocks) + 3  # what gradio does by itself
    memory.forget_replaced()
    kept, page = held_after_updates(4)
    assert kept.blocks_config.blocks.keys() == page.blocks.keys()
    assert kept.config_values.keys() <= page.blocks.keys()
