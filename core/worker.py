"""The worker process of one case: holds the model and the worker lock, takes requests in order, writes events.

`python -m core.worker --case DIR`. Detached from the page; its output goes to `worker.log`. It ends after some idle
minutes, or as soon as another case waits for the device. What it finds begun but not ended at its start was interrupted
by a kill and is closed as failed: nothing runs again by itself.
"""

import argparse
import logging
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from core import jobs, machine, worker_process
from core.casefile import Case
from core.errors import BusyError, CaseFileError, Stopped, TriageError
from core.event_log import EventLog
from core.events import Event, Progress, StageFailed, StageStarted
from core.loaded import is_device_lost
from core.locate_stage import redraw_pictures
from core.offline import forbid_other_hosts
from core.pipeline import run_stage
from core.projection import warm_umap
from core.session import Session

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
RESCAN_SECONDS = 2.0
"""The request folder is read when its time changes, and this often in any case (clocks tick coarsely)."""
IDLE_MINUTES = 20.0
"""Idle time after which the model is let go. Source: unverified choice."""
PROGRESS_SECONDS = 0.25
"""Progress is written at most this often. Source: design.md section 6 (every event within 2 s)."""


class DeviceQueue:
    """The device is used by one case at a time: a lock beside the cases, and a marker by everyone who waits for it."""

    def __init__(self, case: Case, device: str) -> None:
        """Name the lock of `device` in the folder that holds the cases."""
        name = f"device-{device.replace(':', '-')}"
        self._lock = FileLock(case.path.parent / f"{name}.lock")
        self._waiting = case.path.parent / f"{name}.waiting-{uuid.uuid4().hex[:8]}"
        self._pattern = f"{name}.waiting-*"

    def acquire(self, progress: "ProgressWriter") -> None:
        """Wait for the device, saying so."""
        if self._lock.is_locked:
            return
        try:
            while True:
                try:
                    self._lock.acquire(timeout=POLL_SECONDS)
                    return
                except Timeout:
                    self._waiting.touch()
                    progress("waiting for the device (another case uses it)", 0, 0)
        finally:
            self._waiting.unlink(missing_ok=True)

    def wanted(self) -> bool:
        """Return whether another case waits; a marker that nobody has touched for ten seconds is stale."""
        fresh = False
        for path in self._waiting.parent.glob(self._pattern):
            with suppress(FileNotFoundError):
                fresh = fresh or time.time() - path.stat().st_mtime < 10
        return fresh


class Inbox:
    """The open requests of a case, read again when the folder's time changes and after each answer."""

    def __init__(self, case: Case) -> None:
        """Nothing has been read yet."""
        self._case = case
        self._stamp, self._read_at = 0, 0.0

    def next(self) -> jobs.Request | None:
        """Return the oldest open request, or None."""
        stamp = (self._case.path / "requests").stat().st_mtime_ns
        if stamp == self._stamp and time.monotonic() - self._read_at < RESCAN_SECONDS:
            return None
        waiting = jobs.open_requests(self._case)
        if not waiting:
            self._stamp, self._read_at = stamp, time.monotonic()
            return None
        return waiting[0]


class ProgressWriter:
    """Writes progress events, thinned, and raises `Stopped` when the request was asked to end."""

    def __init__(self, case: Case, request: jobs.Request, events: EventLog) -> None:
        """Bind to one request."""
        self._case, self._request, self._events = case, request, events
        self._last, self._said = 0.0, ("", 0, 0)

    def __call__(self, message: str, done: int, total: int) -> None:
        """Write `done` of `total` of the part `message`, unless that is what was written last."""
        if jobs.stop_asked(self._case, self._request.id):
            raise Stopped("Stopped by the analyst.")
        moment, said = time.monotonic(), (message, done, total)
        soon = message == self._said[0] and done < total and moment - self._last < PROGRESS_SECONDS
        if soon or said == self._said:
            return
        self._last, self._said = moment, said
        event = Progress(stage=self._request.stage, message=message, done=done, total=total)
        self._events.append(self._request.id, event)


def serve(case: Case, idle_minutes: float) -> None:
    """Answer requests until idle for `idle_minutes` or the device is wanted by another case."""
    events = EventLog(case.path)
    jobs.close_interrupted(case, events)
    session = Session(case.manifest.device)
    device = DeviceQueue(case, session.device_name)
    last = time.monotonic()
    drawn = True
    inbox = Inbox(case)
    while True:
        request = inbox.next()
        if request is None:
            drawn = drawn or _redrawn(case)
            if device.wanted() or time.monotonic() - last > idle_minutes * 60:
                return
            time.sleep(POLL_SECONDS)
            continue
        if not answer(case, request, events, session, device):
            return
        if request.stage in ("locate", "triage"):  # the picture is PCA's until UMAP is compiled, in the background
            warm_umap()
            drawn = False
        last = time.monotonic()


def _redrawn(case: Case) -> bool:
    """Redraw the pictures; a picture that cannot be written stays as it is, and the worker at work."""
    try:
        return redraw_pictures(case)
    except (TriageError, OSError) as error:
        log.warning("the pictures stay as they are: %s", error)
        return True


def answer(case: Case, request: jobs.Request, events: EventLog, session: Session, device: DeviceQueue) -> bool:
    """Run one request to its end and write how it ended; return whether this process can take another.

    Raises: CaseFileError when not even that can be written.
    """
    progress = ProgressWriter(case, request, events)

    def emit(event: Event) -> None:
        events.append(request.id, event)

    jobs.begin(case, request.id)
    emit(StageStarted(stage=request.stage))
    try:
        _check_out(case, request)
        device.acquire(progress)
        emit(
            run_stage(
                request.stage,
                case,
                session,
                request.args,
                emit=emit,
                progress=progress,
                asked=lambda: jobs.stop_asked(case, request.id),
            )
        )
    except Stopped as error:
        emit(StageFailed(stage=request.stage, message=jobs.leave_nothing(case, request.id, events) or str(error)))
    except TriageError as error:
        emit(StageFailed(stage=request.stage, message=str(error)))
    except Exception as error:
        fault = machine.told(error)
        if fault is None:
            return _ours(request, emit)
        log.exception("request %s met a fault of the machine", request.id)
        emit(StageFailed(stage=request.stage, message=str(fault)))
        return not is_device_lost(error)
    return True


def _check_out(case: Case, request: jobs.Request) -> None:
    """Raise CaseFileError for an export that leads out of the case: the page asks for none, a copied case may hold one."""
    root, out = case.path.resolve(), Path(str(request.args.get("out") or "export"))
    if root not in (root / out).resolve().parents:
        raise CaseFileError(f"The worker writes in the case only, not to {out}; use `python -m core export --out`.")


def _ours(request: jobs.Request, emit: Callable[[Event], None]) -> bool:
    """Close a request that failed by a fault of ours: logged in full, shown with a reference. Call while handling it."""
    reference = uuid.uuid4().hex[:8]
    log.exception("request %s failed, reference %s", request.id, reference)
    message = f"Internal fault in {request.stage}; the log has the details under reference {reference}."
    emit(StageFailed(stage=request.stage, message=message, ours=True, reference=reference))
    return True


def main() -> int:
    """Run the worker of one case; 0 when it ended by itself, 2 when the case is held by another process or cannot be written."""
    parser = argparse.ArgumentParser(description="Worker process of one case.")
    parser.add_argument("--case", required=True, type=Path)
    parser.add_argument("--idle-minutes", type=float, default=IDLE_MINUTES)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        case = Case(options.case)
        lock = jobs.take_lock(case)
    except (BusyError, TriageError) as error:
        log.error("%s", error)
        return 2
    try:
        try:
            with worker_process.marking_this(case):
                serve(case, options.idle_minutes)
        finally:
            lock.release()
        if jobs.open_requests(case):  # asked for while this one was on its way out, and taken for alive
            worker_process.ensure(case)
    except TriageError as error:  # not even the end of a request could be written; the status says why
        log.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    forbid_other_hosts()
    sys.exit(main())
