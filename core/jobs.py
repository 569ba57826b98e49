"""Ask the worker of a case for something, follow it, stop it. Used by the page and the command line; imports no torch.

A request is a file `requests/<id>.json`; its id is a hash of stage, arguments and inputs, so a double click is harmless
and a repeated question is answered from the case. An answer is an event that names the request. Status is derived from
the two and from the worker's lock, never stored: an open request with a free lock has failed.
"""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

from filelock import FileLock, Timeout

from core import evidence, lease, rounds, worker_process
from core.casefile import Case
from core.errors import BusyError, EvidenceError, TriageError
from core.event_log import EventLog
from core.events import (
    CheckpointScored,
    Line,
    Progress,
    RepairFinished,
    RepairStarted,
    StageFailed,
    StageFinished,
    StepDone,
)
from core.events import Event as AnyEvent
from core.files import cannot_write, dump, hash_file, now, write_atomic
from core.serial import from_json, to_json
from core.values import Target

log = logging.getLogger(__name__)

STAGES: Mapping[str, str] = {
    "open": "loading the model",
    "reproduce": "reproducing",
    "locate": "locating",
    "triage": "testing candidates",
    "test": "testing the span",
    "minimise": "minimising the span",
    "repair": "repairing",
    "verify": "verifying",
    "again": "second opinion",
    "wrong-trigger": "repairing on a wrong trigger",
    "relearn": "tuning on poisoned samples",
    "report": "writing the report",
    "export": "exporting",
}
"""The stages, and what each is doing."""
INPUTS = {
    "repair": ("confirmation.json",),
    "verify": ("confirmation.json", "repair/finished.json"),
    "again": ("confirmation.json", "repair/finished.json"),
    "wrong-trigger": ("confirmation.json", "repair/finished.json"),
    "relearn": ("confirmation.json", "repair/finished.json"),
    "export": ("confirmation.json", "repair/finished.json"),
    "report": (
        "triage.json",
        "confirmation.json",
        "repair/finished.json",
        "verification.json",
        "labels.json",
        "containment.json",
    ),
}
"""Files whose content is part of a question, by stage."""
KEPT_REQUESTS = 4096
"""Requests that a process keeps. Source: unverified choice."""
REQUEST_ID = re.compile(r"[0-9a-f]{16}-[0-9]+")
"""What `ask` names a request. Ids are used as file names, and a case that was copied may hold any text."""
INTERRUPTED = (
    "Interrupted: the worker was killed (out of memory?) or the machine stopped. Ask again; a repair can resume."
)
STOPPED = "Stopped before it could end by itself; what it had not stored by then is lost."
"""Of a stage that was asked to stop and was not heard to, as in long preparations."""
DISCARDED = "Stopped before it could end by itself, and discarded; the model is as it was."
"""Of a repair that was to leave nothing and was not heard to, as in a long probe."""
STOP_GRACE_SECONDS = 15.0
"""A worker that has not stopped by then is killed. Source: design.md section 2."""
GRACE_STEPS, STEPS_TIMED = 2, 5
"""A repair that is to keep its best is given the time of so many steps, by the median of the last ones. Source: unverified choice."""
LEAST_FREE_BYTES = 2**16
"""With less, the disk counts as full. Source: unverified choice (an event or a result is smaller)."""
LOCK_WAIT_SECONDS = 1.0
"""Asking whether a worker lives takes its lock for a moment; a starting worker outwaits that."""

State = Literal["idle", "starting", "running", "stopping", "failed"]
How = Literal["keep", "discard"]
AT_WORK: tuple[State, ...] = ("running", "starting", "stopping")
"""States of a case that someone works on, or is about to."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to the worker."""

    id: str
    stage: str
    args: dict[str, Any]
    time: str
    attempt: int


@dataclass(frozen=True, kw_only=True)
class CaseStatus:
    """What happens in a case now. `queue` holds the stages of the requests that wait; `done` of `total` is progress."""

    state: State
    stage: str | None = None
    request: str | None = None
    message: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    queue: tuple[str, ...] = ()
    n_events: int = 0
    worker_alive: bool = False


def locate_file(method: str, target: Target) -> str:
    """Return the name, in the case folder, of the attribution by `method` for `target`."""
    detail = {"first_k": f"-{target.k}", "contrast": f"-{target.k}"}.get(target.kind, "")
    if target.kind == "tokens":
        detail = "-" + sha256(json.dumps(sorted(target.positions)).encode()).hexdigest()[:8]
    return f"results/locate-{method}-{target.kind}{detail}.json"


def doing_now(stage: str | None) -> str:
    """Return what `stage` is doing in words, one of another version as it is; "" for none."""
    return STAGES.get(stage, stage) if stage else ""


def request_key(case: Case, stage: str, args: Mapping[str, Any]) -> str:
    """Return the hash of stage, arguments and input files that names a question."""
    inputs = {name: hash_file(case.path / name) for name in INPUTS.get(stage, ()) if (case.path / name).is_file()}
    text = json.dumps([stage, args, inputs], sort_keys=True, ensure_ascii=False)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def requests(case: Case) -> list[Request]:
    """Return every request ever made, oldest first; files that `ask` did not name so are left alone."""
    found = []
    for path in (case.path / "requests").glob("*.json"):
        with suppress(OSError):  # gone meanwhile, or not to be read now
            found.append(_request(path, path.stat().st_mtime_ns))
    return sorted(filter(None, found), key=lambda request: (request.time, request.attempt))


@lru_cache(maxsize=KEPT_REQUESTS)
def _request(path: Path, written: int) -> Request | None:
    """Return the request in a file as it was at `written` (ns); a page asks for all of them every second."""
    try:
        request = from_json(Request, json.loads(path.read_text(encoding="utf-8")))
    except (RecursionError, ValueError, TriageError):
        log.warning("request %a cannot be read and is left alone", path.name)
        return None
    if REQUEST_ID.fullmatch(request.id) and request.id == path.stem:
        return request
    log.warning("request %a is not named by its id and is left alone", path.name)
    return None


def ends(case: Case) -> dict[str, AnyEvent]:
    """Return the last event of every request that has begun, by request id; its end where it has ended."""
    last: dict[str, AnyEvent] = {}
    for line in case.current_events():
        if not isinstance(last.get(line.request), StageFinished | StageFailed):
            last[line.request] = line.event
    return last


def ask(case: Case, stage: str, args: Mapping[str, Any] | None = None, *, start: bool = True) -> str:
    """Return the id of the request for `stage`: an open or well-answered one where there is one, else a new one.

    A failed, stopped or finished repair is asked anew each time, and so is a report, which tells of all that has come since,
    and what wrote a file that was changed or is gone.
    With `start` the worker is started when none runs. Every new request is an act of who writes the case.
    Raises: TriageError for an unknown stage.
    """
    if stage not in STAGES:
        raise TriageError(f"There is no stage {stage!r}; choose one of {', '.join(STAGES)}.")
    args = dict(args or {})
    key = request_key(case, stage, args)
    everything = requests(case)
    known = [request for request in everything if request.id.split("-")[0] == key]
    request = max(known, key=lambda one: one.attempt, default=None)
    if request is not None:
        end = ends(case).get(request.id)
        again = isinstance(end, StageFailed)
        if isinstance(end, StageFinished):
            again = stage in ("repair", "report") or _changed(case, end) or _overtaken(case, request, end)
        begun = end is not None and not isinstance(end, StageFinished | StageFailed)
        if again or (begun and not (worker_process.alive(case) and _worked_on(case, request.id))):
            request = None
    if request is None:
        attempt = max((one.attempt for one in known), default=-1) + 1
        moment = _after(everything[-1].time) if everything else now()
        request = Request(id=f"{key}-{attempt}", stage=stage, args=args, time=moment, attempt=attempt)
        case.audit(
            "asked", actor=lease.writer(case), stage=stage, request=request.id, args=args
        )  # no request without its act
        write_atomic(case.path / "requests" / f"{request.id}.json", dump(to_json(request)))
    if start and request.id not in _finished(case):
        worker_process.ensure(case)
    return request.id


def _changed(case: Case, end: StageFinished) -> bool:
    """Return whether a result is not what the stage wrote, or an export is gone."""
    if not all((case.path / name).exists() for name in end.files):
        return True
    try:
        kept = (*evidence.INPUTS, evidence.ARRAYS)
        evidence.unchanged(case, *(name for name in end.files if name in kept or name.startswith(evidence.RESULTS)))
    except EvidenceError:
        return True
    return False


def _overtaken(case: Case, request: Request, end: StageFinished) -> bool:
    """Return whether the same stage, asked otherwise, has written over what this request was answered with."""
    written = set(end.files) & set(evidence.INPUTS)
    ended = [(line.request, line.event) for line in case.current_events() if isinstance(line.event, StageFinished)]
    last = [at for at, event in ended if event.stage == request.stage and written & set(event.files)]
    return bool(written) and last[-1:] != [request.id]


def _left_behind(case: Case, request: str) -> bool:
    """Return whether the worker was started after all that was said of a request: it will close it, not answer it."""
    said = max((line.seq for line in case.current_events() if line.request == request), default=None)
    return said is not None and said < worker_process.events_before(case)


def _after(last: str) -> str:
    """Return the time now, or just after `last` where the clock went back: requests keep the order they were made in."""
    try:
        following = datetime.fromisoformat(last) + timedelta(milliseconds=1)
    except (ValueError, OverflowError):  # a time that was changed by hand says nothing
        return now()
    return max(now(), following.isoformat(timespec="milliseconds"))


def open_requests(case: Case) -> list[Request]:
    """Return the requests that have no end yet, oldest first."""
    finished = _finished(case)
    return [request for request in requests(case) if request.id not in finished]


def _finished(case: Case) -> set[str]:
    return {name for name, event in ends(case).items() if isinstance(event, StageFinished | StageFailed)}


def repair_to_resume(case: Case) -> Request | None:
    """Return the repair to go on from, whose arguments its checkpoint fits: the last that took a probe, else the last asked for; None
    without any.
    """
    asked = {request.id: request for request in requests(case) if request.stage == "repair"}
    probed = [line.request for line in case.current_events() if isinstance(line.event, CheckpointScored)]
    return next((asked[one] for one in reversed(probed) if one in asked), next(reversed(asked.values()), None))


def stop(case: Case, request: str, how: How, actor: str = "") -> None:
    """Ask the worker to end `request`: `keep` the best checkpoint or `discard` everything; `actor` is who asks, who need not be who
    writes the case.
    """
    if how not in ("keep", "discard"):
        raise TriageError(f"Stop either keeps or discards, not {how!r}.")
    if not REQUEST_ID.fullmatch(request):
        raise TriageError(f"{request!a} is not the id of a request; stop one that `status` names.")
    write_atomic(case.path / "control" / request, how)
    case.audit("stop", actor=actor or lease.UNNAMED, request=request, how=how)


def stop_asked(case: Case, request: str) -> How | None:
    """Return how `request` was asked to end, or None."""
    if not REQUEST_ID.fullmatch(request):
        return None
    try:
        text = (case.path / "control" / request).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return "keep" if text == "keep" else "discard"


def close_interrupted(case: Case, events: EventLog) -> None:
    """Close requests that were begun and never ended, by a process that has just taken the lock: who began them is gone.

    A repair that was asked to leave nothing leaves nothing then.
    """
    begun = ends(case)
    for request in open_requests(case):
        if request.id in begun:
            message = STOPPED if stop_asked(case, request.id) else INTERRUPTED
            message = leave_nothing(case, request.id, events) or message
            events.append(request.id, StageFailed(stage=request.stage, message=message))


def leave_nothing(case: Case, request: str, events: EventLog) -> str:
    """Leave nothing of a repair that was to be discarded and did not come to it; return the sentence that says so, "" of any other request."""
    discarded = _discarded(case, request)
    if discarded is None:
        return ""
    events.append(request, discarded)
    rounds.discard(case, discarded.step)
    return discarded.message


def trained(case: Case) -> list[str]:
    """Return the repairs that began to train or were to go on with one that had, oldest first; a checkpoint that lies there is the last's."""
    begun = {line.request for line in case.current_events() if isinstance(line.event, RepairStarted)}
    repairs = [one for one in requests(case) if one.stage == "repair"]
    return [one.id for one in repairs if one.id in begun or one.args.get("resume")]


def _discarded(case: Case, request: str) -> RepairFinished | None:
    """Return how a repair ends that was to leave nothing and is gone; None before it has trained, and once its end stands in the log."""
    lines = [line for line in case.current_events() if line.request == request]
    if request not in trained(case) or stop_asked(case, request) != "discard" or not rounds.under_way(case):
        return None
    return RepairFinished(
        reason="discarded",
        step=max((line.event.step for line in lines if isinstance(line.event, StepDone)), default=0),
        best_step=None,
        adapter=None,
        adapter_hash=None,
        seconds=_seconds_since(lines[0].time) - _seconds_since(lines[-1].time),
        message=DISCARDED,
    )


def begin(case: Case, request: str) -> None:
    """Let the grace time of a stop that was asked while the request waited begin now, as the worker takes the request up."""
    with suppress(FileNotFoundError):
        os.utime(case.path / "control" / request)


def enforce_stop(case: Case) -> bool:
    """Kill who works on the case when it has not reacted to a stop within the grace time, and close what it leaves; return whether it was
    found and killed.

    Never for a request that still waits, or that an earlier worker left: the one that runs now cannot have heard of that stop.
    """
    status_now = status(case)
    request = status_now.request
    if status_now.state != "stopping" or request is None or not _worked_on(case, request):
        return False
    control = case.path / "control" / request
    waited = time.time() - control.stat().st_mtime
    if waited < 0:  # the clock went back: the grace time begins anew
        os.utime(control)
    if waited < grace_seconds(case, request):
        return False
    if not worker_process.kill(case):
        return False
    with suppress(TriageError, OSError), take_lock(case):  # else who works on the case next closes it
        close_interrupted(case, EventLog(case.path))
    return True


def grace_seconds(case: Case, request: str) -> float:
    """Return how long a stop may go unheard: a repair reads it between its steps and probes, and one that is to keep its best is waited
    for.
    """
    lines = [line for line in case.current_events() if line.request == request]

    def seconds(kind: type) -> list[float]:
        ends = [(before, line) for before, line in pairwise(lines) if isinstance(line.event, kind)]
        return [_seconds_since(begun.time) - _seconds_since(end.time) for begun, end in ends[-STEPS_TIMED:]]

    steps, probes = seconds(StepDone), seconds(CheckpointScored)
    if not steps or stop_asked(case, request) != "keep":
        return STOP_GRACE_SECONDS
    return max(STOP_GRACE_SECONDS, GRACE_STEPS * (median(steps) + max(probes, default=0.0)))


def _worked_on(case: Case, request: str) -> bool:
    """Return whether the worker that runs now has begun a request."""
    begun = any(line.request == request for line in case.current_events())
    return begun and not _left_behind(case, request)


def take_lock(case: Case) -> FileLock:
    """Return the held worker lock. Raises: BusyError naming what the holder is doing; CaseFileError."""
    lock = FileLock(case.path / worker_process.LOCK)
    try:
        lock.acquire(timeout=LOCK_WAIT_SECONDS)
    except Timeout as error:
        doing = doing_now(status(case).stage) or "an open page"
        raise BusyError(f"The case is busy with {doing}; wait, or stop it with `python -m core stop`.") from error
    except OSError as error:
        raise cannot_write(worker_process.LOCK, error) from error
    return lock


def status(case: Case) -> CaseStatus:
    """Return what happens in the case now, derived from requests, events and the worker's lock.

    What has begun goes before what waits: a terminal runs its own stage, whatever was asked of a worker before.
    """
    alive = worker_process.alive(case)
    lines = case.current_events()
    waiting = open_requests(case)
    if not waiting:
        return _idle_status(lines[-1] if lines else None, alive)
    taken_up = {line.request for line in lines}
    current = next((request for request in waiting if request.id in taken_up), waiting[0])
    mine = [line for line in lines if line.request == current.id]
    message, done, total = _progress([line.event for line in mine])
    begun = mine[0].time if mine else current.time
    state: State = "running" if alive else "starting" if worker_process.starting(case) else "failed"
    if state == "running" and not mine:
        state = "starting"
    if state in AT_WORK and stop_asked(case, current.id):
        state = "stopping"
    if state == "failed":
        message = _why_it_ended(case, current.id)
    return CaseStatus(
        state=state,
        stage=current.stage,
        request=current.id,
        message=message or current.stage,
        done=done,
        total=total,
        seconds=_seconds_since(begun),
        queue=tuple(request.stage for request in waiting if request is not current),
        n_events=lines[-1].seq + 1 if lines else 0,
        worker_alive=alive,
    )


def _why_it_ended(case: Case, request: str) -> str:
    """Return the sentence for a worker that ended without a word: that it was stopped, or what keeps it from writing, if anything does."""
    if stop_asked(case, request):
        return STOPPED
    if not os.access(case.path, os.W_OK):
        return "The case folder cannot be written (read-only?); make it writable, then ask again."
    if shutil.disk_usage(case.path).free < LEAST_FREE_BYTES:
        return "The disk that holds the case is full; free space, then ask again."
    told = "see the log below, then " if worker_process.log_tail(case) else ""
    return f"The worker ended before it answered; {told}ask again."


def _progress(events: list[AnyEvent]) -> tuple[str, int, int]:
    """Return message, done and total of the newest progress or repair step."""
    for event in reversed(events):
        if isinstance(event, Progress):
            return event.message, event.done, event.total
        if isinstance(event, StepDone):
            started = next((e for e in events if isinstance(e, RepairStarted)), None)
            return f"repair step {event.step}", event.step, started.n_steps if started else 0
    return "", 0, 0


def _idle_status(line: Line | None, alive: bool) -> CaseStatus:
    last, n_events = (line.event, line.seq + 1) if line else (None, 0)
    if isinstance(last, StageFailed):
        return CaseStatus(state="failed", stage=last.stage, message=last.message, n_events=n_events, worker_alive=alive)
    message = last.headline if isinstance(last, StageFinished) else ""
    return CaseStatus(state="idle", message=message, n_events=n_events, worker_alive=alive)


def _seconds_since(moment: str) -> float:
    try:
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
    except (TypeError, ValueError):  # a time that was changed by hand says nothing
        return 0.0
