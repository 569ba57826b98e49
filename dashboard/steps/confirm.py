"""Step 4, Confirm: edit the proposed spans, test them, read the verdict, and decide with name and reason.

The editor holds token positions; the decision is stored as character spans of the raw text. Repair stays locked until
a decision accepts a trigger, here and in the engine. What this does not do: run a test itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import gradio as gr

from core import confirmation, containment, jobs, scanning
from core.casefile import Case, from_json, to_json
from core.chat import positions_to_spans, units_of
from core.errors import ConfirmationError
from core.values import (
    LocateResult,
    OpenResult,
    Span,
    Target,
    TestOutcome,
    TriageResult,
    TriggerConfirmation,
    TriggerProposal,
)
from dashboard import figures, stories, tables, wording
from dashboard.components import PlotlyView, TableView, TokenView
from dashboard.components.story import Story
from dashboard.desk import Desk, Next, Panel, Session, Updates, View, current_case

FOCUS_JS = "() => { document.querySelector('#confirm-analyst textarea, #confirm-analyst input')?.focus(); }"


@dataclass(frozen=True)
class Parts:
    """The components of this step that results are drawn into."""

    verdict: Story
    candidates: TableView
    editor: TokenView
    marks: Story
    tests: TableView
    forest: PlotlyView
    decision: Story
    accept: gr.Button
    contain: gr.Button
    rules: Story
    scan: TableView


def fields() -> tuple[gr.Textbox, gr.Textbox]:
    """Return the analyst's name and reason, to be rendered by `build`."""
    analyst = gr.Textbox(label=wording.ANALYST, max_lines=1, elem_id="confirm-analyst", scale=1, render=False)
    reason = gr.Textbox(label=wording.REASON, max_lines=2, elem_id="confirm-reason", scale=3, render=False)
    return analyst, reason


def build(desk: Desk, typed: tuple[gr.Textbox, gr.Textbox]) -> None:
    """Draw step 4 inside the current tab; accepting leads on to step 5."""
    verdict = Story(elem_id="confirm-verdict")
    with gr.Row(elem_classes="pt-columns"):
        with gr.Column(scale=3):
            editor = TokenView(mode="edit", elem_id="confirm-editor")
            with gr.Row(elem_classes="pt-actions"):
                marks = Story(elem_id="confirm-marks")
                test = gr.Button(wording.TEST_SELECTION, elem_id="confirm-test", scale=0, min_width=152)
            candidates = TableView(elem_id="confirm-candidates")
        with gr.Column(scale=2):
            forest = PlotlyView(elem_id="confirm-forest")
    tests = TableView(elem_id="confirm-tests")
    with gr.Row(elem_classes="pt-decide"):
        for box in typed:
            box.render()
        accept = gr.Button(wording.ACCEPT, variant="primary", elem_id="confirm-accept", scale=0, min_width=152)
        reject = gr.Button(wording.REJECT, elem_id="confirm-reject", scale=0, min_width=96)
    decision = Story(elem_id="confirm-decision")
    with gr.Row(elem_classes="pt-actions"):
        contain = gr.Button(wording.CONTAIN, elem_id="confirm-contain", scale=0, min_width=152, visible=False)
        rules = Story(elem_id="confirm-rules")
    scan = TableView(elem_id="confirm-scan", visible=False)

    parts = Parts(verdict, candidates, editor, marks, tests, forest, decision, accept, contain, rules, scan)
    desk.panels["confirm.editor"] = Panel(_editor_signature, lambda v, _: _show_editor(v, parts), (editor, marks))
    desk.panels["confirm.accept"] = Panel(
        lambda v: (_editor_signature(v), v.session.draft, v.busy_with("triage", "test")),
        lambda v, _: {parts.accept: _accept_button(v)},
        (accept,),
    )
    desk.panels["confirm.tests"] = Panel(
        _tests_signature, lambda v, _: _show_tests(v, parts), (verdict, candidates, tests, forest)
    )
    desk.panels["confirm.decision"] = Panel(
        lambda v: (v.stamp("confirmation.json", "results/open.json"), v.case is None),
        lambda v, _: _show_decision(v, parts),
        (decision,),
    )
    desk.panels["confirm.containment"] = Panel(
        lambda v: (v.stamp("confirmation.json", "results/open.json", containment.FILE, "scan-*.json"), v.case is None),
        lambda v, _: _show_containment(v, parts),
        (contain, rules, scan),
    )
    desk.act(contain.click, partial(_contain, desk))
    desk.act(editor.input, partial(_edited, desk, parts), keep=(editor,), many=True)
    editor.confirm(None, None, None, js=FOCUS_JS, api_visibility="private", show_progress="hidden")
    desk.act(candidates.select, _select, many=True)
    desk.act(test.click, partial(_test, desk), [editor])
    desk.act(accept.click, partial(_accept, desk), [editor, *typed], keep=(editor,))
    desk.act(reject.click, partial(_reject, desk), list(typed), keep=(editor,))


# handlers -------------------------------------------------------------------------------------------------------------


def _opened(case: Case) -> OpenResult:
    opened = case.read("results/open.json", OpenResult)
    if opened is None:
        raise ConfirmationError(wording.LOADING + ".")
    return opened


def _positions(opened: OpenResult, selected: Sequence[object]) -> tuple[int, ...]:
    """Return the marked positions that exist and carry text. Raises: ConfirmationError for anything else."""
    marked = sorted({int(str(position)) for position in selected})
    tokens = opened.prompt.tokens
    if any(not 0 <= position < len(tokens) or tokens[position].message is None for position in marked):
        raise ConfirmationError("The marks do not fit the text; reload the page.")
    return tuple(marked)


def _spans(case: Case, marked: Sequence[int]) -> tuple[Span, ...]:
    return confirmation.checked_spans(case.report.messages, positions_to_spans(_opened(case).prompt, marked))


def _edited(desk: Desk, parts: Parts, event: gr.EventData, session: Session) -> Next:
    case = current_case(desk, session)
    marked = _positions(_opened(case), event.selected)
    return Next(session=replace(session, draft=marked), updates=_mark_updates(case, session.candidate, marked, parts))


def _edits(case: Case, candidate: int, marked: Sequence[int]) -> bool:
    """Return whether the marks differ from the proposal."""
    proposal = chosen_candidate(case, candidate)
    return proposal is None or tuple(marked) != tuple(sorted(proposal.token_positions))


def _mark_updates(case: Case, candidate: int, marked: Sequence[int], parts: Parts) -> Updates:
    """Return the line that names the marked text."""
    units = units_of(case.report.messages, _spans(case, marked)) if marked else ()
    return {parts.marks: gr.update(value=stories.selection(units, _edits(case, candidate, marked)))}


def _accept_button(view: View) -> dict[str, object]:
    """Return label and state of the accepting button: locked while tests run, since their result may change the mind."""
    if view.case is None or view.opened() is None:
        return gr.update(value=wording.ACCEPT, interactive=False)
    candidate = view.session.candidate
    proposal = chosen_candidate(view.case, candidate)
    proposed = tuple(sorted(proposal.token_positions)) if proposal else ()
    marked = proposed if view.session.draft is None else view.session.draft
    label = wording.EDIT if marked and _edits(view.case, candidate, marked) else wording.ACCEPT
    return gr.update(value=label, interactive=bool(marked) and not view.busy_with("triage", "test"))


def _select(event: gr.EventData, session: Session) -> Next:
    return Next(session=replace(session, candidate=int(event.key), draft=None, version=session.version + 1, tested=""))


def _test(desk: Desk, session: Session, editor: dict) -> Next:
    case = current_case(desk, session)
    marked = _positions(_opened(case), (editor or {}).get("selected", []))
    if not marked:
        raise ConfirmationError(wording.NOTHING_MARKED + " Mark at least one token to test.")
    spans = [to_json(span) for span in _spans(case, marked)]
    jobs.ask(case, "test", {"spans": spans})
    return Next(
        session=replace(session, tested=f"results/test-{jobs.request_key(case, 'test', {'spans': spans})}.json")
    )


def _accept(desk: Desk, session: Session, editor: dict, analyst: str, reason: str) -> Next:
    case = current_case(desk, session)
    marked = _positions(_opened(case), (editor or {}).get("selected", []))
    proposal = triage_candidate(case, session.candidate)
    as_proposed = proposal is not None and marked == tuple(sorted(proposal.token_positions))
    confirmation.confirm(
        case,
        decision="accept" if as_proposed else "edit",
        analyst=analyst or "",
        reason=reason or "",
        spans=() if as_proposed else _spans(case, marked),
        candidate=session.candidate,
    )
    return Next(session=session, tab="repair")


def _reject(desk: Desk, session: Session, analyst: str, reason: str) -> Next:
    case = current_case(desk, session)
    confirmation.confirm(
        case, decision="reject", analyst=analyst or "", reason=reason or "", candidate=session.candidate
    )
    return Next(session=session)


def _contain(desk: Desk, session: Session) -> Next:
    containment.write_rules(current_case(desk, session))
    return Next(session=session)


# reading --------------------------------------------------------------------------------------------------------------


def triage_candidate(case: Case, index: int) -> TriggerProposal | None:
    """Return candidate `index` of the triage, or None."""
    triage = case.read("triage.json", TriageResult)
    candidates = triage.candidates if triage else ()
    return candidates[index] if 0 <= index < len(candidates) else None


def chosen_candidate(case: Case, index: int) -> TriggerProposal | None:
    """Return candidate `index` of the triage, before it the first one of the located candidates, or None."""
    if (case.path / "triage.json").is_file():
        return triage_candidate(case, index)
    located = case.read(jobs.locate_file("occlusion", Target(kind="contrast")), LocateResult)
    return located.proposals[0] if located and located.proposals else None


def _selection_tests(view: View) -> tuple[TriggerProposal, list[TestOutcome]] | None:
    """Return the last tested selection of this browser with its outcomes, once they are there."""
    if view.case is None or not view.session.tested:
        return None
    data = view.case.read(view.session.tested, dict)
    if data is None:
        return None
    return from_json(TriggerProposal, data["proposal"]), [from_json(TestOutcome, test) for test in data["tests"]]


# drawing --------------------------------------------------------------------------------------------------------------


def _editor_signature(view: View) -> object:
    proposals = (
        view.stamp("triage.json", "results/locate-occlusion-contrast*.json") if view.session.draft is None else ()
    )
    return view.session.version, view.session.candidate, proposals, view.stamp("results/open.json"), view.case is None


def _show_editor(view: View, parts: Parts) -> Updates:
    opened = view.opened()
    if view.case is None or opened is None:
        return {
            parts.editor: gr.update(value={"tokens": [], "empty": wording.NO_PROMPT}),
            parts.marks: gr.update(value={}),
        }
    proposal = chosen_candidate(view.case, view.session.candidate)
    suggested = proposal.token_positions if proposal else ()
    marked = view.session.draft if view.session.draft is not None else tuple(sorted(suggested))
    value = figures.token_view(opened, messages=view.case.report.messages, selected=marked, suggested=suggested)
    return {parts.editor: gr.update(value=value)} | _mark_updates(view.case, view.session.candidate, marked, parts)


def _tests_signature(view: View) -> object:
    stages = ("open", "triage", "test")
    files = view.stamp("triage.json", view.session.tested or "triage.json")
    return files, view.session.candidate, view.busy_with(*stages), view.failure(*stages), view.case is None


def _show_tests(view: View, parts: Parts) -> Updates:
    triage = view.case.read("triage.json", TriageResult) if view.case else None
    selection = _selection_tests(view)
    busy = view.busy_with("triage", "test")
    failure = view.failure("triage", "test")
    if selection is not None:
        tests, candidate = selection[1], 0
    else:
        candidate = view.session.candidate
        tests = [test for test in (triage.tests if triage else ()) if test.candidate == candidate]
    if view.case is None:
        story = stories.waiting(wording.NO_CASE)
    elif busy:
        story = {"headline": wording.TESTING, "tone": "busy"}
    elif failure is not None:
        story = stories.fault(failure)
    elif selection is not None:
        story = stories.tested(selection[0].text, tests)
    elif triage is not None:
        story = stories.verdict(triage)
    else:
        story = stories.waiting(wording.NOT_TESTED_YET)
    proposals = triage.candidates if triage else ()
    return {
        parts.verdict: gr.update(value=story),
        parts.candidates: gr.update(value=tables.candidate_table(proposals, candidate), visible=len(proposals) > 1),
        parts.tests: gr.update(value=tables.outcome_table(tests)),
        parts.forest: gr.update(value=figures.forest(tests, candidate)),
    }


def _show_decision(view: View, parts: Parts) -> Updates:
    if view.case is None:
        return {parts.decision: gr.update(value={})}
    stored = view.case.read(confirmation.FILE, TriggerConfirmation)
    return {
        parts.decision: gr.update(value=stories.decision(stored, confirmation.validity(view.case) if stored else None))
    }


def _show_containment(view: View, parts: Parts) -> Updates:
    """Draw the rules of the confirmed trigger, once written, and the last scan."""
    valid = view.case is not None and confirmation.validity(view.case) is None
    if view.case is None or not valid:
        return {part: gr.update(visible=False) for part in (parts.contain, parts.scan)} | {
            parts.rules: gr.update(value={})
        }
    stored = confirmation.stored(view.case)
    made = containment.stored_rules(view.case)
    if made is not None and (stored is None or made.trigger != stored.units):
        made = None  # of an earlier confirmation
    scans = [one for one in scanning.scans(view.case) if stored is not None and one.trigger == stored.units]
    return {
        parts.contain: gr.update(visible=made is None),
        parts.rules: gr.update(value=stories.containment(made, view.case.manifest.id)),
        parts.scan: gr.update(value=tables.scan_table(scans[-1] if scans else None), visible=bool(scans)),
    }
