"""The whole chain, as stages that read the case, compute, and write their result into the case.

    open -> reproduce -> locate -> triage (test) -> [confirm] -> repair -> verify -> export, report

The worker and the command line both call `run_stage`; the analyst's confirmation needs no model and lives in
`confirmation.py`. A stage function takes a `Run` and returns the headline and the files it wrote.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from core import after_repair, jobs, locate_stage, repair_stages, report_stage, span_stages, triage_stages
from core.casefile import Case
from core.events import Event, StageFinished
from core.judge import using
from core.progress import Progress
from core.session import Run, Session


def triage(run: Run) -> StageFinished:
    """Triage, and what a repair of what it found would take."""
    finished = triage_stages.triage(run)
    if run.args.get("mode", "causal") == "causal":
        repair_stages.count_memory(run)
    return finished


STAGES: dict[str, Callable[[Run], StageFinished]] = {
    "open": triage_stages.open_case,
    "reproduce": triage_stages.reproduce,
    "locate": locate_stage.locate,
    "triage": triage,
    "test": span_stages.test_span,
    "minimise": span_stages.minimise_span,
    "repair": repair_stages.repair_model,
    "verify": repair_stages.verify,
    "again": after_repair.second_opinion,
    "wrong-trigger": after_repair.probe_wrong_trigger,
    "relearn": after_repair.probe_relearn,
    "report": report_stage.write_report,
    "export": repair_stages.export_model,
}


def run_stage(
    stage: str,
    case: Case,
    session: Session,
    args: Mapping[str, Any] | None = None,
    *,
    emit: Callable[[Event], None],
    progress: Progress,
    asked: Callable[[], jobs.How | None] = lambda: None,
) -> StageFinished:
    """Run one stage and return how it ended; its results are in the case.

    Raises: TriageError for a fault of the user or the input, `Stopped` when asked to end.
    """
    run = Run(case, session, args or {}, emit, progress, asked)
    begun = time.monotonic()
    with using(session.judge(case)):
        finished = STAGES[stage](run)
    return replace(finished, seconds=round(time.monotonic() - begun, 3))
