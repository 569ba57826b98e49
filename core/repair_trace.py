"""A repair as its events tell it: one history, though it was stopped or killed and went on under another request.

A resumed repair goes on from a checkpoint; what came after that checkpoint is run again, and only the second run of it
counts. One that ends without an adapter gives way to the last that left one, as it does in the case (`rounds.put_back`). What this
does not do: read files, or tell rounds apart (`rounds.of_this_round` does).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from core.events import CheckpointScored, Line, RepairFinished, RepairStarted, StepDone


@dataclass(frozen=True, kw_only=True)
class RepairTrace:
    """The last repair. `run`: the request it began with; `request`: the one that went on with it last; "" without any.

    `since`: how another one ended that was begun later and left nothing.
    """

    run: str = ""
    request: str = ""
    started: RepairStarted | None = None
    steps: tuple[StepDone, ...] = ()
    probes: tuple[CheckpointScored, ...] = ()
    finished: RepairFinished | None = None
    since: RepairFinished | None = None

    @property
    def probe(self) -> CheckpointScored | None:
        """The newest probe; once the repair has ended, that of the checkpoint it kept."""
        kept = self.finished.best_step if self.finished else None
        return next((one for one in reversed(self.probes) if kept in (None, one.step)), None)


def trace(lines: Iterable[Line], *, ended: bool = False) -> RepairTrace:
    """Return the last repair among the events of a round; with `ended` one that has not ended gives way too."""
    run = request = ""
    left: RepairTrace | None = None
    started: RepairStarted | None = None
    finished: RepairFinished | None = None
    steps: list[StepDone] = []
    probes: list[CheckpointScored] = []

    def current() -> RepairTrace:
        return RepairTrace(
            run=run, request=request, started=started, steps=tuple(steps), probes=tuple(probes), finished=finished
        )

    for line in lines:
        event = line.event
        if isinstance(event, RepairStarted):
            request, started, finished = line.request, event, None
            run = run if event.resumed_at is not None and run else request
            kept = -1 if event.resumed_at is None else event.resumed_at
            steps = [step for step in steps if step.step <= kept]
            probes = [probe for probe in probes if probe.step <= kept]
        elif isinstance(event, StepDone):
            steps.append(event)
        elif isinstance(event, CheckpointScored):
            probes.append(event)
        elif isinstance(event, RepairFinished):
            finished = event
            left = current() if event.adapter is not None else left
    if left is not None and (ended or finished is not None):
        return left if finished is left.finished else replace(left, since=finished)
    return current()
