"""Step 4, Confirm: edit the proposed spans, have them tested, and decide with name and reason.

The editor holds token positions; the decision is stored as character spans of the raw text. Repair stays locked until
a decision accepts a trigger, here and in the engine. What this does not do: run a test itself, or draw what the tests
found (`verdict.py`).
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import parse_qs

import gradio as gr

from core import confirmation, containment, jobs, scanning
from core.casefile import Case
from core.errors import ConfirmationError, TriageError
from core.serial import to_json
from core.text_spans import positions_to_spans, spans_to_positions, units_of
from core.values import (
    LocateResult,
    OpenResult,
    Span,
    Target,
    TriageResult,
    TriggerConfirmation,
    TriggerProposal,
)
from dashboard import figures, stories, tables, wording, wording_confirm, wording_verdict
from dashboard.components import PlotlyView, TableView, TokenView
from dashboard.components.story import Story
from dashboard.desk import Desk, Next, Panel, Session, Updates, View, current_case, sent, writing
from dashboard.steps import verdict

FOCUS_JS = "() => { document.querySelector('#confirm-analyst textarea, #confirm-analyst input')?.focus(); }"


@dataclass(frozen=True)
class Parts:
    """The components of this step that results are drawn into; `found` shows the verdict."""

    found: verdict.Parts
    editor: TokenView
    marks: Story
    test: gr.Button
    minimise: gr.Button
    stop: gr.Button
    decision: Story
    accept: gr.Button
    dummy: gr.Button
    second: gr.Button
    contain: gr.Button
    rules: Story
    scan: TableView


def fields() -> tuple[gr.Textbox, gr.Textbox]:
    """Return the analyst's name and reason, to be rendered by `build`."""
    analyst = gr.Textbox(label=wording_confirm.ANALYST, max_lines=1, elem_id="confirm-analyst", scale=1, render=False)
    reason = gr.Textbox(label=wording_confirm.REASON, max_lines=2, elem_id="confirm-reason", scale=3, render=False)
    return analyst, reason


def build(desk: Desk, typed: tuple[gr.Textbox, gr.Textbox]) -> None:
    """Draw step 4 inside the current tab; accepting leads on to step 5."""
    parts, reject = _layout(typed)
    _draw(desk, parts)
    editor, act = parts.editor, desk.act
    act(parts.contain.click, partial(_contain, desk))
    act(editor.input, partial(_edited, desk, parts), [editor], keep=(editor,), last=True)
    editor.confirm(None, None, None, js=FOCUS_JS, api_visibility="private", show_progress="hidden")
    act(parts.found.candidates.select, partial(_select, desk), many=True)
    act(parts.test.click, partial(_ask_own, desk, "test"), [editor], keep=(editor,))
    act(parts.minimise.click, partial(_ask_own, desk, "minimise"), [editor], keep=(editor,))
    act(parts.stop.click, partial(_stop, desk))
    act(parts.found.mark.click, partial(_mark_smallest, desk))
    act(parts.accept.click, partial(_accept, desk), [editor, *typed], keep=(editor,))
    act(parts.dummy.click, partial(_dummy, desk), list(typed), keep=(editor,))
    act(reject.click, partial(_reject, desk), list(typed), keep=(editor,))
    act(parts.second.click, partial(_agree, desk), list(typed), keep=(editor,))
    desk.writes(parts.test, parts.minimise, parts.accept, parts.dummy, reject, parts.second, parts.contain)


def _layout(typed: tuple[gr.Textbox, gr.Textbox]) -> tuple[Parts, gr.Button]:
    """Place the components; return them and the rejecting button."""
    serving = Story(elem_id="confirm-serving")
    story = Story(elem_id="confirm-verdict")
    with gr.Row(elem_classes="pt-columns"):
        with gr.Column(scale=3):
            editor = TokenView(mode="edit", elem_id="confirm-editor")
            with gr.Row(elem_classes="pt-actions"):
                marks = Story(elem_id="confirm-marks")
                test, minimise, stop = (
                    gr.Button(text, elem_id=f"confirm-{name}", scale=0, min_width=64, interactive=False)
                    for name, text in (
                        ("test", wording_confirm.TEST_SPAN),
                        ("minimise", wording_confirm.MINIMISE_SPAN),
                        ("stop", wording_confirm.STOP),
                    )
                )
            candidates = TableView(elem_id="confirm-candidates")
        with gr.Column(scale=2):
            forest = PlotlyView(elem_id="confirm-forest")
            with gr.Row(elem_classes="pt-actions"):  # beside the candidates, where it moves nothing
                own = Story(elem_id="confirm-own")
                mark = gr.Button(
                    wording_confirm.MARK_SMALLEST, elem_id="confirm-mark", scale=0, min_width=64, visible=False
                )
    with gr.Row(elem_classes="pt-decide"):
        for box in typed:
            box.render()
        accept = gr.Button(wording_confirm.ACCEPT, elem_id="confirm-accept", scale=0, min_width=152)
        reject = gr.Button(wording_confirm.REJECT, elem_id="confirm-reject", scale=0, min_width=96)
        dummy = gr.Button(wording_confirm.DUMMY, elem_id="confirm-dummy", scale=0, min_width=152, visible=False)
        second = gr.Button(
            wording_confirm.AGREE, elem_id="confirm-second", scale=0, min_width=152, visible=False, variant="primary"
        )
    decision = Story(elem_id="confirm-decision")
    tests = TableView(elem_id="confirm-tests")
    described = TableView(elem_id="confirm-described", elem_classes="pt-quiet-table", visible=False)
    with gr.Row(elem_classes="pt-actions"):
        contain = gr.Button(wording_confirm.CONTAIN, elem_id="confirm-contain", scale=0, min_width=152, visible=False)
        rules = Story(elem_id="confirm-rules")
    scan = TableView(elem_id="confirm-scan", visible=False)
    found = verdict.Parts(serving, story, candidates, tests, described, forest, own, mark)
    parts = Parts(found, editor, marks, test, minimise, stop, decision, accept, dummy, second, contain, rules, scan)
    return parts, reject


def _draw(desk: Desk, parts: Parts) -> None:
    """Register what is redrawn when."""
    panels = desk.panels
    panels["confirm.editor"] = Panel(
        _editor_signature, lambda v, _: _show_editor(v, parts), (parts.editor, parts.marks)
    )
    panels["confirm.actions"] = Panel(
        lambda v: (_editor_signature(v), v.session.draft, [v.busy_with(stage) for stage in ("triage", *verdict.OWN)]),
        lambda v, _: _show_actions(v, parts),
        (parts.accept, parts.test, parts.minimise, parts.stop),
    )
    verdict.draw(desk, parts.found)
    panels["confirm.decision"] = Panel(
        lambda v: (v.stamp("confirmation.json", "results/open.json", "triage.json"), v.case is None),
        lambda v, _: _show_decision(v, parts),
        (parts.decision, parts.second, parts.dummy),
    )
    panels["confirm.containment"] = Panel(
        lambda v: (v.stamp("confirmation.json", "results/open.json", containment.FILE, "scan-*.json"), v.case is None),
        lambda v, _: _show_containment(v, parts),
        (parts.contain, parts.rules, parts.scan),
    )


# handlers -------------------------------------------------------------------------------------------------------------


def _opened(case: Case) -> OpenResult:
    opened = case.read("results/open.json", OpenResult)
    if opened is None:
        raise ConfirmationError(wording.NOT_LOADED)
    return opened


def _positions(opened: OpenResult, selected: Sequence[object]) -> tuple[int, ...]:
    """Return the marked positions that exist and carry text. Raises: ConfirmationError for anything else."""
    tokens = opened.prompt.tokens
    marked = {
        one for one in selected if isinstance(one, int) and 0 <= one < len(tokens) and tokens[one].message is not None
    }
    if len(marked) != len(selected):
        raise ConfirmationError("The marks do not fit the text; reload the page.")
    return tuple(sorted(marked))


def _spans(case: Case, marked: Sequence[int]) -> tuple[Span, ...]:
    return confirmation.checked_spans(case.report.messages, positions_to_spans(_opened(case).prompt, marked))


def _edited(desk: Desk, parts: Parts, session: Session, editor: dict) -> Next:
    case = current_case(desk, session)
    marked = _positions(_opened(case), sent(editor, "selected", list))
    return Next(session=replace(session, draft=marked), updates=_mark_updates(case, session.candidate, marked, parts))


def _edits(case: Case, candidate: int, marked: Sequence[int]) -> bool:
    """Return whether the marks differ from the proposal."""
    proposal = chosen_candidate(case, candidate)
    return proposal is None or tuple(marked) != tuple(sorted(proposal.token_positions))


def _mark_updates(case: Case, candidate: int, marked: Sequence[int], parts: Parts) -> Updates:
    """Return the line that names the marked text."""
    units = units_of(case.report.messages, _spans(case, marked)) if marked else ()
    return {parts.marks: gr.update(value=stories.selection(units, _edits(case, candidate, marked)))}


def _select(desk: Desk, event: gr.EventData, session: Session) -> Next:
    """Show a candidate: mark it, and show its tests where it was tested. A dropped one is only marked."""
    case, key = current_case(desk, session), sent(event, "key", int)
    triage = case.read("triage.json", TriageResult)
    draft = None
    if triage is not None and (key < 0 or triage.verdict in wording_verdict.UNMARKED):
        listed = triage.candidates if key >= 0 else triage.dropped
        number = key if key >= 0 else -1 - key
        draft = tuple(sorted(listed[number].token_positions)) if number < len(listed) else None
    candidate = key if key >= 0 else session.candidate
    return Next(session=replace(session, candidate=candidate, draft=draft, version=session.version + 1, tested=""))


def _ask_own(desk: Desk, stage: str, session: Session, editor: dict) -> Next:
    """Ask for `stage` on what is marked."""
    case = writing(desk, session)
    marked = _positions(_opened(case), sent(editor, "selected", list) if editor else [])
    if not marked:
        raise ConfirmationError(f"{wording_confirm.NOTHING_MARKED} Mark at least one token.")
    args = {"spans": [to_json(span) for span in _spans(case, marked)]}
    jobs.ask(case, stage, args)
    return Next(session=replace(session, tested=verdict.result_file(stage, jobs.request_key(case, stage, args))))


def _stop(desk: Desk, session: Session) -> Next:
    """Ask the running test to end; nothing of it is kept."""
    case = current_case(desk, session)
    running = [request for request in jobs.open_requests(case) if request.stage in ("triage", *verdict.OWN)]
    if running:
        jobs.stop(case, running[0].id, "discard", session.analyst)
    return Next(session=session)


def _mark_smallest(desk: Desk, session: Session) -> Next:
    """Mark the smallest part that was found."""
    case = current_case(desk, session)
    found = verdict.minimised(case, session)
    if found is None or found.smallest is None:
        return Next(session=session)
    marked = spans_to_positions(_opened(case).prompt, found.smallest.spans)
    return Next(session=replace(session, draft=marked, version=session.version + 1))


def _accept(desk: Desk, session: Session, editor: dict, analyst: str, reason: str) -> Next:
    case = writing(desk, session)
    marked = _positions(_opened(case), sent(editor, "selected", list) if editor else [])
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
    return Next(session=session, tab=None if confirmation.validity(case) else "repair")


def _dummy(desk: Desk, session: Session, analyst: str, reason: str) -> Next:
    """Confirm the repair without a trigger text, which goes on in step 5."""
    case = writing(desk, session)
    confirmation.confirm(case, decision="dummy", analyst=analyst or "", reason=reason or "")
    return Next(session=session, tab="repair")


def _reject(desk: Desk, session: Session, analyst: str, reason: str) -> Next:
    case = writing(desk, session)
    confirmation.confirm(
        case, decision="reject", analyst=analyst or "", reason=reason or "", candidate=session.candidate
    )
    return Next(session=session)


def _agree(desk: Desk, session: Session, analyst: str, reason: str) -> Next:
    """The second analyst agrees with the confirmation as it stands."""
    confirmation.agree(writing(desk, session), analyst=analyst or "", reason=reason or "")
    return Next(session=session, tab="repair")


def _contain(desk: Desk, session: Session) -> Next:
    containment.write_rules(writing(desk, session))
    return Next(session=session)


# reading --------------------------------------------------------------------------------------------------------------


def chosen(case: Case, session: Session, kept: str) -> Session:
    """Return the session with the candidate and the marks that a tab kept over a refresh (`desk.address`), where they fit the case.

    A damaged result keeps nothing, and is said where it is shown.
    """
    said = parse_qs(kept, keep_blank_values=True)
    with suppress(ValueError, KeyError, TriageError):
        candidate = int(said["candidate"][0])
        if triage_candidate(case, candidate) is not None:
            session = replace(session, candidate=candidate)
    with suppress(ValueError, KeyError, TriageError):
        marked = _positions(_opened(case), [int(one) for one in said["marks"][0].split(".") if one])
        session = replace(session, draft=marked)
    return session


def triage_candidate(case: Case, index: int) -> TriggerProposal | None:
    """Return candidate `index` of the triage, or None."""
    triage = case.read("triage.json", TriageResult)
    candidates = triage.candidates if triage else ()
    return candidates[index] if 0 <= index < len(candidates) else None


def suggested(case: Case, index: int) -> tuple[int, ...]:
    """Return the token positions that are hinted at: the candidate's, none where the verdict names no trigger."""
    triage = case.read("triage.json", TriageResult)
    if triage is not None and triage.verdict in wording_verdict.NO_TRIGGER:
        return ()
    proposal = chosen_candidate(case, index)
    return tuple(sorted(proposal.token_positions)) if proposal else ()


def marks(case: Case, session: Session) -> tuple[int, ...]:
    """Return what is marked: what the analyst marked, else the candidate where the tests speak for it."""
    if session.draft is not None:
        return session.draft
    triage = case.read("triage.json", TriageResult)
    unmarked = triage is not None and triage.verdict in wording_verdict.UNMARKED
    return () if unmarked else suggested(case, session.candidate)


def chosen_candidate(case: Case, index: int) -> TriggerProposal | None:
    """Return candidate `index` of the triage, before it the first one of the located candidates, or None."""
    if (case.path / "triage.json").is_file():
        return triage_candidate(case, index)
    located = case.read(jobs.locate_file("occlusion", Target(kind="contrast")), LocateResult)
    return located.proposals[0] if located and located.proposals else None


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
    proposed = suggested(view.case, view.session.candidate)
    marked = marks(view.case, view.session)
    value = figures.token_view(opened, messages=view.case.report.messages, selected=marked, suggested=proposed)
    return {parts.editor: gr.update(value=value)} | _mark_updates(view.case, view.session.candidate, marked, parts)


def _show_actions(view: View, parts: Parts) -> Updates:
    """Buttons about the marked span; accepting is locked while tests run, since their result may change the mind."""
    busy = {stage: view.busy_with(stage) for stage in ("triage", *verdict.OWN)}
    if view.case is None or view.opened() is None:
        buttons = (parts.accept, parts.test, parts.minimise, parts.stop)
        return {button: gr.update(interactive=False) for button in buttons}
    case, candidate = view.case, view.session.candidate
    marked = marks(case, view.session)
    triage = case.read("triage.json", TriageResult)
    found = triage is not None and triage.verdict == "BACKDOOR"
    label = wording_confirm.EDIT if marked and _edits(case, candidate, marked) else wording_confirm.ACCEPT
    free = bool(marked) and not any(busy.values())
    words = wording_confirm
    return {
        parts.accept: gr.update(value=label, interactive=free, variant="primary" if found else "secondary"),
        parts.test: gr.update(value=words.TESTING_SPAN if busy["test"] else words.TEST_SPAN, interactive=free),
        parts.minimise: gr.update(
            value=words.MINIMISING_SPAN if busy["minimise"] else words.MINIMISE_SPAN, interactive=free
        ),
        parts.stop: gr.update(interactive=any(busy.values())),
    }


def _show_decision(view: View, parts: Parts) -> Updates:
    if view.case is None:
        hidden = {button: gr.update(visible=False) for button in (parts.second, parts.dummy)}
        return {parts.decision: gr.update(value={})} | hidden
    stored = view.case.read(confirmation.FILE, TriggerConfirmation)
    triage = view.case.read("triage.json", TriageResult)
    fault = confirmation.validity(view.case) if stored else None
    wanted = stored is not None and stories.lacks_second(stored, fault)
    return {
        parts.decision: gr.update(value=stories.decision(stored, fault, triage.verdict if triage else None)),
        parts.second: gr.update(visible=wanted),
        parts.dummy: gr.update(visible=confirmation.takes_dummy(triage)),
    }


def _show_containment(view: View, parts: Parts) -> Updates:
    """Draw the rules of the confirmed trigger, once written, and the last scan."""
    valid = view.case is not None and confirmation.validity(view.case) is None
    accepted = confirmation.stored(view.case) if view.case else None
    if view.case is None or not valid or (accepted is not None and accepted.way == "dummy"):
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
        parts.rules: gr.update(value=stories.containment(made, view.case.path.name)),
        parts.scan: gr.update(value=tables.scan_table(scans[-1] if scans else None), visible=bool(scans)),
    }
