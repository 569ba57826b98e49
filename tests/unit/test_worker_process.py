"""Whether a worker lives, its start and its end: one worker a case, whoever asks at once, and an end without a fault."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from filelock import FileLock

from core import jobs, worker, worker_process
from core.casefile import Case
from tests.unit.test_casefile import make_case


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def test_of_two_who_ask_at_once_one_starts_the_worker(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    both = threading.Barrier(2)

    def popen(*_: object, **__: object) -> subprocess.Popen[bytes]:
        time.sleep(0.1)  # so that the other one looks meanwhile
        started.append(real([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[-1]

    def ensure() -> None:
        both.wait()
        worker_process.ensure(case)

    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", popen)
    threads = [threading.Thread(target=ensure) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    marked = worker_process.marked(case)
    for process in started:
        process.kill()
        process.wait()
    assert len(started) == 1
    assert marked is not None
    assert marked.pid == started[0].pid


def test_a_worker_marks_itself(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever started it may have been killed before it could."""
    seen: list[psutil.Process | None] = []
    monkeypatch.setattr(worker, "serve", lambda *_: seen.append(worker_process.marked(case)))
    monkeypatch.setattr(sys, "argv", ["worker", "--case", str(case.path)])
    assert worker.main() == 0
    assert seen == [psutil.Process()]


def test_what_is_asked_of_a_worker_on_its_way_out_is_answered_by_the_next(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves because another case wants the device; until its process has ended it would pass for one that starts."""
    asked: list[bool] = []

    def leaving(*_: object) -> None:
        jobs.ask(case, "open", start=False)
        worker_process.ensure(case)  # taken for alive: nothing is started

    monkeypatch.setattr(worker, "serve", leaving)
    monkeypatch.setattr(worker_process, "_start", lambda one: asked.append(worker_process.alive(one)))
    monkeypatch.setattr(sys, "argv", ["worker", "--case", str(case.path)])
    assert worker.main() == 0
    assert asked == [False]
    assert not worker_process.starting(case)


def test_who_asks_whether_a_worker_lives_is_taken_for_none(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking holds the lock for a moment."""
    monkeypatch.setattr(worker_process, "PROBE_SECONDS", 30.0)  # however late the timer comes
    asking = FileLock(case.path / worker_process.LOCK, thread_local=False)
    asking.acquire()
    release = threading.Timer(0.01, asking.release)
    release.start()
    assert not worker_process.alive(case)
    release.join()
    monkeypatch.undo()
    with FileLock(case.path / worker_process.LOCK):
        assert worker_process.alive(case)


@pytest.mark.parametrize("gone", ["children", "terminate", "kill"])
def test_a_process_that_ends_by_itself_meanwhile_is_killed_all_the_same(
    case: Case, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    def answer(name: str) -> Callable[..., list[object]]:
        def call(**_: object) -> list[object]:
            if name == gone:
                raise psutil.NoSuchProcess(1)
            return []

        return call

    process = SimpleNamespace(**{name: answer(name) for name in ("children", "terminate", "kill")})
    monkeypatch.setattr(worker_process, "marked", lambda case: process)
    monkeypatch.setattr(psutil, "wait_procs", lambda family, timeout: ([], family))
    assert worker_process.kill(case)
