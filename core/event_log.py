"""The events of a case, one line each in `events.jsonl`: one process writes, everyone reads.

A page asks where a case stands every second, and a long repair makes thousands of events: what was read once is kept, less what is
over, and only what was appended since is read, by all browsers of a process together.
"""

import json
import os
import sys
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from core.errors import CaseFileError
from core.events import (
    CheckpointScored,
    Event,
    Line,
    Progress,
    RepairFinished,
    RepairStarted,
    StageFailed,
    StageFinished,
    StepDone,
)
from core.files import cannot_write, dump, now
from core.serial import event_to_json, from_json

NAME = "events.jsonl"
ENDS = StageFinished, StageFailed, RepairStarted
"""Events after which others are over."""
KEPT_CASES = 4
"""Cases whose events a process keeps. Source: unverified choice."""


@dataclass(frozen=True)
class _Read:
    """The lines of a file up to byte `end`, `n` in all, and the bytes of the last of them, by which a rewritten file is known."""

    lines: tuple[Line, ...] = ()
    end: int = 0
    last: bytes = b""
    n: int = 0


_kept: OrderedDict[Path, _Read] = OrderedDict()
_lock = Lock()


def read_events(folder: Path) -> tuple[Line, ...]:
    """Return all events of the case in `folder`; an unterminated last line is ignored.

    Raises: CaseFileError for a damaged line, by its number.
    """
    return _read_on(folder / NAME, _Read()).lines


def current_events(folder: Path) -> tuple[Line, ...]:
    """Return the events that say where the case in `folder` stands, from memory but for what was appended since the last call.

    Left out is what is over: progress of requests that have ended, steps and probes of repairs before the last that left an adapter.
    Raises: CaseFileError as `read_events`.
    """
    path = folder / NAME
    with _lock:
        kept = _kept.pop(path, _Read())
        read = _read_on(path, kept)
        if read is not kept and any(isinstance(line.event, ENDS) for line in read.lines[len(kept.lines) :]):
            read = replace(read, lines=_standing(read.lines))
        _kept[path] = read
        while len(_kept) > KEPT_CASES:
            _kept.popitem(last=False)
    return read.lines


def _standing(lines: tuple[Line, ...]) -> tuple[Line, ...]:
    """Return the lines without what is over; `jobs.ends` and `repair_trace.trace` say the same of both."""
    ended = {line.request for line in lines if isinstance(line.event, StageFinished | StageFailed)}
    last, left = 0, None
    for line in lines:
        if isinstance(line.event, RepairStarted) and line.event.resumed_at is None:
            last = line.seq
        elif isinstance(line.event, RepairFinished) and line.event.adapter is not None:
            left = last
    begun = last if left is None else left

    def over(line: Line) -> bool:
        if isinstance(line.event, Progress):
            return line.request in ended
        return isinstance(line.event, StepDone | CheckpointScored) and line.seq < begun

    return tuple(line for line in lines if not over(line))


def _read_on(path: Path, read: _Read) -> _Read:
    """Return `read` with what the file holds beyond it; all anew when the file is no longer the one that was read."""
    try:
        with open(path, "rb") as file:
            file.seek(read.end - len(read.last))
            if file.read(len(read.last)) != read.last:
                file.seek(0)
                read = _Read()
            fresh = [line for line in file if line.endswith(b"\n")]
    except FileNotFoundError:
        return _Read()
    if not fresh:
        return read
    lines = tuple(_parse(line, read.n + i) for i, line in enumerate(fresh, start=1))
    end = read.end + sum(map(len, fresh))
    return _Read(lines=read.lines + lines, end=end, last=fresh[-1], n=read.n + len(lines))


def _parse(line: bytes, number: int) -> Line:
    """Return line `number` of the file. Raises: CaseFileError when it is none."""
    try:
        data: Any = json.loads(line)
    except (RecursionError, ValueError):
        data = None
    if (
        not isinstance(data, dict)
        or not isinstance(data.get("request"), str)
        or not isinstance(data.get("event"), dict)
    ):
        raise CaseFileError(f"Line {number} of {NAME} is damaged; restore it or start a new case.")
    return from_json(Line, data | {"request": sys.intern(data["request"])})


class EventLog:
    """The one writer of `events.jsonl`; held by the process that holds the worker lock."""

    def __init__(self, folder: Path) -> None:
        """Cut an unterminated last line off and go on counting."""
        self._path = folder / NAME
        self._path.touch()
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with open(self._path, "r+b") as file:
                file.truncate(whole)
        self._next = data[:whole].count(b"\n")

    def append(self, request: str, event: Event) -> None:
        """Write one event, flushed to the operating system. Raises: CaseFileError; nothing of the event is left then."""
        line = {"seq": self._next, "time": now(), "request": request, "event": event_to_json(event)}
        whole = self._path.stat().st_size
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(dump(line, indent=None) + "\n")
        except OSError as error:
            with suppress(OSError):
                os.truncate(self._path, whole)
            raise cannot_write(self._path.name, error) from error
        self._next += 1
