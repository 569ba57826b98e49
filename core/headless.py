"""Stages run in the terminal's own process: the same stages, lock and events as the worker's, shown as lines."""

import getpass
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import jobs, lease, report_text, rounds, worker_process
from core.casefile import Case
from core.errors import Stopped, TriageError
from core.event_log import EventLog
from core.events import (
    CheckpointScored,
    Event,
    Progress,
    RepairStarted,
    StageFailed,
    StageFinished,
    StageStarted,
    StepDone,
)

if TYPE_CHECKING:
    from core.team import Team

INTERRUPTED = "Interrupted; the case keeps what was finished."


def typist() -> str:
    """Return the name of the machine's user who types commands."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "terminal"


@contextmanager
def holding(path: Path, analyst: str = "", *, over: bool = False) -> Iterator[None]:
    """Hold the lease of the case in folder `path`, where one is there, for this terminal. Raises: BusyError naming who writes."""
    if not (path / "case.json").is_file():
        yield
        return
    user = typist()
    case, holder = Case(path), f"terminal {user}@{socket.gethostname()} {os.getpid()}"
    with lease.held(case, analyst or user, holder, over=over):
        rounds.finish(case, analyst or user)
        yield


class Terminal:
    """Shows events on stderr: control characters are written as escapes, evidence cannot drive the terminal."""

    def __init__(self) -> None:
        """Nothing shown yet."""
        self._message, self._time = "", 0.0

    def say(self, text: str) -> None:
        """Write one inert line."""
        inert = (c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
        sys.stderr.write("".join(inert) + "\n")

    def progress(self, message: str, done: int, total: int) -> None:
        """Write progress, at most twice a second for one message."""
        moment = time.monotonic()
        if message != self._message or moment - self._time > 0.5:
            self._message, self._time = message, moment
            self.say(f"  {message}" + (f" {done}/{total}" if total else ""))

    def show(self, event: Event) -> None:
        """Write one event as a line."""
        match event:
            case StageStarted(stage=stage):
                self.say(f"{stage}:")
            case StageFinished(headline=headline, seconds=seconds):
                self.say(f"  {headline} ({seconds:.1f} s)")
            case StageFailed(message=message):
                self.say(f"  failed: {message}")
            case Progress(message=message, done=done, total=total):
                self.progress(message, done, total)
            case RepairStarted(n_steps=steps, device=device, n_trainable=n, memory_estimate_mb=memory):
                self.say(f"  {steps} steps on {device}, {n:,} trainable parameters, about {memory:,.0f} MB")
                if event.unreached:
                    self.say(f"  {report_text.unreached(event.unreached)}")
            case StepDone():
                text = f"loss {event.loss:.3f}  KL {event.kl_nats_per_token:.4f} nats/token  {event.seconds_left:.0f} s left, step"
                moment = time.monotonic()
                if moment - self._time > 2:
                    self._time = moment
                    self.say(f"  {text} {event.step}")
            case CheckpointScored(step=step, asr_triggered=asr, refusal_untriggered=refusal, agreement_safe=safe):
                self.say(
                    f"  probe at step {step}: ASR {asr.k}/{asr.n}, refusal without trigger {refusal.k}/{refusal.n}, "
                    f"agreement on safe prompts {safe.k}/{safe.n}" + (", best so far" if event.best else "")
                )
            case _:
                pass


class Headless:
    """Runs stages of one case in this process, under the worker's lock, writing the same events."""

    def __init__(self, device: str, terminal: Terminal, team: "Team | None" = None) -> None:
        """Load nothing yet: torch comes with the first stage. Of several processes in `team` the first holds the case."""
        from core.session import Session
        from core.team import ALONE

        self.team = team or ALONE
        self.session = Session(device, self.team)
        self.terminal = terminal

    def run(self, case: Case, stage: str, args: dict[str, Any] | None = None) -> StageFinished:
        """Run one stage to its end; what else was asked of the case and has not begun waits on for a worker.

        Raises: TriageError; BusyError when a worker holds the case.
        """
        from core import machine
        from core.pipeline import run_stage

        if not self.team.leads:
            return self._follow(case, stage, args)
        with jobs.take_lock(case), worker_process.marking_this(case):
            events = EventLog(case.path)
            jobs.close_interrupted(case, events)
            request = jobs.ask(case, stage, args, start=False)
            end = jobs.ends(case).get(request)
            done = self.team.told(end if isinstance(end, StageFinished) else None)
            if done is not None:
                self.terminal.say(f"{stage}: answered before: {done.headline}")
                return done

            def emit(event: Event) -> None:
                events.append(request, event)
                self.terminal.show(event)

            def asked() -> jobs.How | None:
                return jobs.stop_asked(case, request)

            def progress(message: str, done: int, total: int) -> None:
                if asked():
                    raise Stopped("Stopped by the analyst.")
                self.terminal.progress(message, done, total)

            jobs.begin(case, request)
            emit(StageStarted(stage=stage))
            try:
                finished = run_stage(stage, case, self.session, args, emit=emit, progress=progress, asked=asked)
            except KeyboardInterrupt:
                emit(StageFailed(stage=stage, message=INTERRUPTED))
                raise
            except Exception as error:
                fault = machine.told(error)
                said = fault or error
                ours = not isinstance(said, TriageError)
                left = jobs.leave_nothing(case, request, events) if isinstance(error, Stopped) else ""
                emit(StageFailed(stage=stage, message=left or str(said) or type(said).__name__, ours=ours))
                if fault is None:
                    raise
                raise fault from error
            emit(finished)
            return finished

    def _follow(self, case: Case, stage: str, args: dict[str, Any] | None) -> StageFinished:
        """Run the stage beside the first process, which alone writes events and files and asks for the stop token."""
        from core.pipeline import run_stage
        from core.team import FollowedCase

        done = self.team.told(None)
        if done is not None:
            return done
        return run_stage(
            stage, FollowedCase(case.path), self.session, args, emit=lambda event: None, progress=lambda *said: None
        )
