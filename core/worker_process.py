"""The worker process of a case: whether it lives, its start, its end and its log. Imports no torch.

A worker holds the lock of its case while it lives, and so does a terminal that runs stages itself. A marker with number and start
time, left by who starts a worker and by such a terminal, finds the process again, also before it holds the lock, and tells it from
another of the same number. What this does not do: ask it anything (`jobs.py`).
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from core.casefile import Case
from core.files import cannot_write, dump, write_atomic

LOCK, STARTING, LOG = "worker.lock", "worker.starting", "worker.log"
START_LOCK = "worker.start.lock"
START_GRACE_SECONDS = 60.0
"""A worker that holds no lock by then has failed to start. Source: stack.md (imports take 5-9 s), with a margin."""
PROBE_SECONDS, PROBE_EVERY_SECONDS = 0.05, 0.02
"""A lock that is held for longer is a worker's; another process that asks holds it for less. Source: unverified choice."""
LOG_TAIL_LINES = 12
_TRACEBACK = re.compile(
    r"^[^\n]*Traceback \(most recent call last\):$.*?(?=^\d{4}-\d\d-\d\d |\Z)", re.MULTILINE | re.DOTALL
)
"""From the head of a traceback to the next record of the log."""


def alive(case: Case) -> bool:
    """Return whether some process holds the worker's lock."""
    lock = FileLock(case.path / LOCK)
    try:
        lock.acquire(timeout=PROBE_SECONDS, poll_interval=PROBE_EVERY_SECONDS)
    except Timeout:
        return True
    except OSError:  # a folder that cannot be written, where no worker can run
        return False
    lock.release()
    return False


def ensure(case: Case) -> None:
    """Start the worker of the case, detached, unless one is running or starting; of all who ask at once, one does.

    Raises: CaseFileError.
    """
    lock = FileLock(case.path / START_LOCK)
    try:
        lock.acquire()
    except OSError as error:
        raise cannot_write(START_LOCK, error) from error
    try:
        if not (alive(case) or starting(case)):
            _start(case)
    finally:
        lock.release()


def _start(case: Case) -> None:
    """Start the worker and mark it. Raises: CaseFileError."""
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", PYTHONUNBUFFERED="1")
    root = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
    detached: dict[str, Any] = (
        {
            "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
            | getattr(subprocess, "DETACHED_PROCESS", 0)
        }
        if sys.platform == "win32"
        else {"start_new_session": True}
    )
    try:
        output = open(case.path / LOG, "ab")  # noqa: SIM115  closed below, once the worker has it
    except OSError as error:
        raise cannot_write(LOG, error) from error
    n_events = case.n_events()
    with output:
        process = subprocess.Popen(
            [sys.executable, "-m", "core.worker", "--case", str(case.path.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=root,
            env=environment,
            **detached,
        )
    mark(case, process.pid, n_events)


def mark(case: Case, pid: int, n_events: int) -> None:
    """Write the start marker: the worker's process, and how many events there were before it."""
    write_atomic(case.path / STARTING, dump({"pid": pid, "created": _created(pid), "events": n_events}))


@contextmanager
def marking_this(case: Case) -> Iterator[None]:
    """Mark this process as the one that works on the case while it does; it holds the lock. Raises: CaseFileError."""
    mark(case, os.getpid(), case.n_events())
    try:
        yield
    finally:
        found = marked(case)
        if (
            found is not None and found.pid == os.getpid()
        ):  # a process takes seconds to end: it would pass for one that starts
            with suppress(OSError):
                (case.path / STARTING).unlink(missing_ok=True)


def _created(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def marked(case: Case) -> psutil.Process | None:
    """Return the living process that the start marker names, or None."""
    try:
        marker = json.loads((case.path / STARTING).read_text(encoding="utf-8"))
        process = psutil.Process(marker["pid"])
        same = marker["created"] is not None and abs(process.create_time() - marker["created"]) < 1
        same = same or str(case.path.resolve()) in process.cmdline()  # the start time moves with a clock that is set
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, RecursionError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def events_before(case: Case) -> int:
    """Return how many events there were when the worker was started, 0 without a marker that says so."""
    try:
        n = json.loads((case.path / STARTING).read_text(encoding="utf-8"))["events"]
    except (OSError, RecursionError, ValueError, KeyError, TypeError):
        return 0
    return n if isinstance(n, int) else 0


def starting(case: Case) -> bool:
    path = case.path / STARTING
    if marked(case) is None:
        return False
    return time.time() - path.stat().st_mtime < START_GRACE_SECONDS


def kill(case: Case) -> bool:
    """Terminate the marked process and its children, then kill what is left after three seconds; return whether there was one."""
    process = marked(case)
    if process is None:
        return False
    family = [process]
    with suppress(psutil.NoSuchProcess):  # each may end by itself meanwhile
        family = [*process.children(recursive=True), process]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.terminate()
    for member in psutil.wait_procs(family, timeout=3)[1]:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    return True


def log_tail(case: Case) -> str:
    """Return the last lines of the worker's log, for the page: each traceback is a word on where it stands."""
    try:
        text = (case.path / LOG).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(_TRACEBACK.sub(f"(details in {LOG} of the case)\n", text).splitlines()[-LOG_TAIL_LINES:])
