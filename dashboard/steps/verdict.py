"""Part of step 4: the verdict, its candidates and their tests, and what became of a span the analyst marked.

Draws what the case folder holds. What this does not do: take a click, or change what is marked (`confirm.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from core import jobs
from core.casefile import Case
from core.serial import from_json
from core.values import MinimisedSpan, TestOutcome, TriageResult, TriggerProposal
from dashboard import figures, stories, tables, wording, wording_verdict
from dashboard.components import PlotlyView, TableView
from dashboard.components.story import Story
from dashboard.desk import Desk, Panel, Session, Updates, View

TRIAGE = "triage.json"
OWN = ("test", "minimise")
"""Stages that work on a span the analyst marked."""


@dataclass(frozen=True)
class Parts:
    """The components that the verdict is drawn into."""

    serving: Story
    story: Story
    candidates: TableView
    tests: TableView
    described: TableView
    forest: PlotlyView
    own: Story
    mark: gr.Button


def draw(desk: Desk, parts: Parts) -> None:
    """Register what is redrawn when."""
    desk.panels["confirm.own"] = Panel(_own_signature, lambda v, _: _show_own(v, parts), (parts.own, parts.mark))
    desk.panels["confirm.tests"] = Panel(
        _tests_signature,
        lambda v, _: _show_tests(v, parts),
        (parts.serving, parts.story, parts.candidates, parts.tests, parts.described, parts.forest),
    )


def result_file(stage: str, key: str) -> str:
    """Return the name of what a stage of `OWN` finds, for a question by its key."""
    return f"results/{stage}-{key}.json"


def tested(case: Case | None, session: Session) -> str:
    """Return the result file of the span that is looked at, "" for none.

    In a browser that has not chosen yet, as after a refresh: of the last one that anybody asked about, unless triage has found
    something since.
    """
    if case is None or session.tested is not None:
        return session.tested or ""
    since = (case.path / TRIAGE).stat().st_mtime_ns if (case.path / TRIAGE).is_file() else 0
    asked = [result_file(one.stage, one.id.split("-")[0]) for one in jobs.requests(case) if one.stage in OWN]
    there = [name for name in asked if (case.path / name).is_file()]
    return there[-1] if there and (case.path / there[-1]).stat().st_mtime_ns > since else ""


def minimised(case: Case, session: Session) -> MinimisedSpan | None:
    """Return the smallest part of the span that is looked at, once it is there."""
    name = tested(case, session)
    return case.read(name, MinimisedSpan) if _is_minimised(name) else None


def _is_minimised(name: str) -> bool:
    return name.startswith("results/minimise-")


def _selection_tests(view: View) -> tuple[TriggerProposal, list[TestOutcome]] | None:
    """Return the span that is looked at with the outcomes of its tests, once they are there."""
    name = tested(view.case, view.session)
    if view.case is None or not name or _is_minimised(name):
        return None
    data = view.case.read(name, dict)
    if data is None:
        return None
    return from_json(TriggerProposal, data["proposal"]), [from_json(TestOutcome, test) for test in data["tests"]]


def _own_signature(view: View) -> object:
    name = tested(view.case, view.session)
    return name, view.stamp(name) if name else (), view.busy_with(*OWN), view.failure(*OWN)


def _show_own(view: View, parts: Parts) -> Updates:
    """What became of the span the analyst asked about: its tests, or its smallest part."""
    selection = _selection_tests(view)
    found = minimised(view.case, view.session) if view.case else None
    story: stories.Value = {}
    if selection is not None:
        story = stories.tested(selection[0].text, selection[1])
    elif found is not None:
        story = stories.minimised(found)
    elif view.session.tested and not view.busy_with(*OWN) and view.failure(*OWN):
        failure = str(view.failure(*OWN))
        story = stories.waiting(failure) if view.stopped() else stories.fault(failure)
    smaller = found is not None and found.smallest is not None and found.smallest.spans != found.marked.spans
    return {parts.own: gr.update(value=story), parts.mark: gr.update(visible=smaller)}


def _tests_signature(view: View) -> object:
    stages = ("open", "triage")
    files = view.stamp(TRIAGE, tested(view.case, view.session) or TRIAGE)
    return files, view.session.candidate, view.busy_with(*stages), view.failure(*stages), view.case is None


def _show_tests(view: View, parts: Parts) -> Updates:
    triage = view.case.read(TRIAGE, TriageResult) if view.case else None
    failure = view.failure("triage")
    if view.case is None:
        story = stories.waiting(wording.NO_CASE)
    elif view.busy_with("triage"):
        story = {"headline": wording_verdict.TESTING, "tone": "busy"}
    elif failure is not None:
        story = stories.waiting(failure) if view.stopped() else stories.fault(failure)
    elif triage is not None:
        story = stories.verdict(triage)
    else:
        opened = view.opened()
        story = stories.waiting(
            wording_verdict.NOT_TESTED_YET, wording.long_prompt(opened.occlusion if opened else None)
        )
    selection = _selection_tests(view)
    own, candidate = None, view.session.candidate
    tests: Sequence[TestOutcome] = triage.tests if triage else ()
    if selection is not None:
        own, candidate, tests = selection[0].text, 0, selection[1]
    proposals, dropped = (triage.candidates, triage.dropped) if triage else ((), ())
    described = tables.described_table(tests, candidate)
    return {
        parts.serving: gr.update(value=stories.serving(triage) if triage else {}),
        parts.story: gr.update(value=story),
        parts.candidates: gr.update(
            value=tables.candidate_table(proposals, None if own else candidate, dropped), visible=triage is not None
        ),
        parts.tests: gr.update(value=tables.outcome_table(tests, candidate, own)),
        parts.described: gr.update(value=described, visible=bool(described["rows"])),
        parts.forest: gr.update(value=figures.forest(tests, candidate)),
    }
