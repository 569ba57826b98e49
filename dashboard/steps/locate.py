"""Step 3, Locate: which tokens the answer hangs on, by a chosen method for a chosen target, and the candidates they give.

Gradient norm comes first because it is one backward pass; it stands in while a slower method runs. Every result is kept in
the case, so a second look costs nothing. What this does not do: decide whether a candidate is a trigger.
"""

from dataclasses import dataclass, replace
from functools import partial

import gradio as gr

from core import jobs, lease
from core.casefile import Case
from core.errors import AttributionError
from core.serial import to_json
from core.settings import AttributionSettings
from core.text_spans import positions_to_spans
from core.values import LocateResult, OpenResult, Target, TriggerProposal
from dashboard import figures, stories, tables, token_plots, wording, wording_locate
from dashboard.components import PlotlyView, TableView, TokenView
from dashboard.components.story import Story
from dashboard.desk import Desk, Next, Panel, Session, Updates, View, current_case, sent, writing
from dashboard.steps import verdict, wordings

METHODS = ("occlusion", "integrated_gradients", "gradient_x_input", "gradient_norm", "paper")
TARGETS = ("contrast", "response", "first_k", "tokens")
COUNTED = ("contrast", "first_k")
"""Targets of which `k` is a part."""
FIRST_LOOK = "gradient_norm"
"""The method that stands in while the chosen one runs. Source: ui.md section 3."""


@dataclass(frozen=True)
class Parts:
    """The components of this step that results are drawn into."""

    story: Story
    text: TokenView
    strip: PlotlyView
    picture: PlotlyView
    trust: Story
    tokens: TableView
    candidates: TableView
    response: TokenView
    pick: gr.Column
    k: gr.Number


def build(desk: Desk, arrive: gr.Button) -> gr.Button:
    """Draw step 3 inside the current tab, reached by the button `arrive`; return the button that leads on to step 4."""
    with gr.Row(elem_classes="pt-head"):
        story = Story(elem_id="locate-story")
        method = gr.Dropdown(
            [(wording_locate.method_name(name), name) for name in METHODS],
            value="occlusion",
            label=wording_locate.METHOD,
            elem_id="locate-method",
            min_width=176,
            scale=0,
        )
        target = gr.Dropdown(
            [(wording_locate.target_name(name), name) for name in TARGETS],
            value="contrast",
            label=wording_locate.TARGET,
            elem_id="locate-target",
            min_width=268,
            scale=0,
        )
        k = gr.Number(
            AttributionSettings().first_k,
            label=wording_locate.FIRST_K,
            precision=0,
            elem_id="locate-k",
            min_width=96,
            scale=0,
        )
    desk.choices |= {"method": method, "target": target, "k": k}
    with gr.Column(visible=False) as pick:
        gr.Markdown(wording_locate.PICK_TOKENS, elem_classes="pt-label")
        with gr.Row(elem_classes="pt-line-row"):
            response = TokenView(mode="edit", spoken=wording_locate.PICKER, confirms=False, elem_id="locate-response")
            explain = gr.Button(wording_locate.EXPLAIN, elem_id="locate-explain", scale=0, min_width=96)
    with gr.Row(elem_classes="pt-columns"):
        with gr.Column(scale=3):
            text = TokenView(mode="heat", elem_id="locate-text")
            trust = Story(elem_id="locate-trust")
            candidates = TableView(elem_id="locate-candidates")
            with gr.Row(elem_classes="pt-actions"):
                onward = gr.Button(wording_locate.TEST_CANDIDATES, variant="primary", elem_id="to-confirm")
                test = gr.Button(wording_locate.TEST_CANDIDATE, elem_id="locate-test")
                edit = gr.Button(wording_locate.EDIT_CANDIDATE, elem_id="locate-edit")
            own = wordings.build(desk)
        with gr.Column(scale=2):
            strip = PlotlyView(elem_id="locate-strip")
            picture = PlotlyView(elem_id="locate-map")
    with gr.Accordion(wording_locate.TABLE_TWIN, open=False):
        tokens = TableView(elem_id="locate-tokens")

    parts = Parts(story, text, strip, picture, trust, tokens, candidates, response, pick, k)
    drawn = (story, text, strip, picture, trust, tokens, candidates, pick, k)
    desk.panels["locate"] = Panel(_signature, lambda view, _: _show(view, parts), drawn)
    desk.panels["response"] = Panel(
        lambda view: view.stamp("results/open.json"), lambda view, _: _show_response(view, parts), (response,)
    )
    chosen = [method, target, k]
    desk.act(arrive.click, partial(_arrive, desk), chosen)
    for selector in chosen:
        desk.act(selector.change, partial(_choose, desk), chosen, keep=(selector,), last=True)
    desk.act(explain.click, partial(_explain, desk), [*chosen, response])
    for linked in (text, strip, picture):
        desk.act(linked.select, _highlight, keep=(), many=True)
    desk.act(tokens.select, _highlight_row, many=True)
    desk.act(candidates.select, _select_candidate, many=True)
    desk.act(onward.click, partial(_triage, desk), own)
    desk.act(test.click, partial(_test, desk), chosen)
    desk.act(edit.click, partial(_edit, desk), chosen)
    desk.writes(onward, test)
    return onward


# choices --------------------------------------------------------------------------------------------------------------


def target_of(session: Session, kind: str, k: float | None) -> Target:
    """Return the target that the selectors name; a `k` below 1, and fields that do not matter for its kind, are as by default."""
    if kind == "tokens":
        return Target(kind="tokens", positions=session.positions)
    wanted = int(k) if k and k >= 1 else AttributionSettings().first_k
    return Target(kind=kind, k=wanted if kind in COUNTED else Target().k)  # type: ignore[arg-type]


def _ask(case: Case, session: Session, method: str, target: Target) -> None:
    """Ask for an attribution that is not there yet; a reader of a case that another analyst writes sees what there is."""
    if not lease.may_write(case, session.analyst, session.browser):
        return
    if method == "paper":
        target = Target()
    if target.kind == "tokens" and not target.positions:
        return
    if not (case.path / jobs.locate_file(method, target)).is_file():
        jobs.ask(case, "locate", {"method": method, "target": to_json(target)})


def _arrive(desk: Desk, session: Session, method: str, kind: str, k: float | None) -> Next:
    case = current_case(desk, session)
    _ask(case, session, FIRST_LOOK, Target())
    _ask(case, session, method, target_of(session, kind, k))
    return Next(session=session, tab="locate")


def _choose(desk: Desk, session: Session, method: str, kind: str, k: float | None) -> Next:
    if kind in COUNTED and k is not None and k < 1:
        raise AttributionError(wording_locate.TOO_FEW_TOKENS)
    if session.case:
        _ask(current_case(desk, session), session, method, target_of(session, kind, k))
    return Next(session=session)


def _explain(desk: Desk, session: Session, method: str, kind: str, k: float | None, response: dict) -> Next:
    case = current_case(desk, session)
    opened = _opened(case)
    marked = sent(response, "selected", list) if response else []
    if not marked or not all(isinstance(one, int) and 0 <= one < len(opened.response) for one in marked):
        raise AttributionError(wording_locate.PICK_TOKENS)
    session = replace(session, positions=tuple(sorted(marked)))
    _ask(case, session, method, target_of(session, kind, k))
    return Next(session=session)


def _opened(case: Case) -> OpenResult:
    opened = case.read("results/open.json", OpenResult)
    if opened is None:
        raise AttributionError(wording.NOT_LOADED)
    return opened


def _highlight(event: gr.EventData, session: Session) -> Next:
    return Next(session=replace(session, highlight=(sent(event, "position", int),)))


def _highlight_row(event: gr.EventData, session: Session) -> Next:
    return Next(session=replace(session, highlight=(sent(event, "key", int),)))


def _select_candidate(event: gr.EventData, session: Session) -> Next:
    return Next(session=replace(session, located=sent(event, "key", int)))


# candidates -----------------------------------------------------------------------------------------------------------


def _triage(desk: Desk, session: Session, paraphrases: str, rewrites: str, template: str) -> Next:
    own = wordings.given(paraphrases, rewrites, template)
    jobs.ask(writing(desk, session), "triage", {"mode": "causal", **own})
    session = replace(session, candidate=0, draft=None, version=session.version + 1, tested="")
    return Next(session=session, tab="confirm")


def _proposal(desk: Desk, session: Session, method: str, kind: str, k: float | None) -> tuple[Case, TriggerProposal]:
    """Return the case and the selected candidate of what is shown. Raises: AttributionError when there is none."""
    case = current_case(desk, session)
    result = case.read(jobs.locate_file(*_file_key(method, target_of(session, kind, k))), LocateResult)
    proposals = result.proposals if result else ()
    if not proposals:
        raise AttributionError(wording_locate.NO_CANDIDATES)
    return case, proposals[min(session.located, len(proposals) - 1)]


def _test(desk: Desk, session: Session, method: str, kind: str, k: float | None) -> Next:
    case, proposal = _proposal(desk, session, method, kind, k)
    spans = [to_json(span) for span in positions_to_spans(_opened(case).prompt, proposal.token_positions)]
    jobs.ask(writing(desk, session), "test", {"spans": spans})
    tested = verdict.result_file("test", jobs.request_key(case, "test", {"spans": spans}))
    marks = proposal.token_positions
    return Next(session=replace(session, draft=marks, version=session.version + 1, tested=tested), tab="confirm")


def _edit(desk: Desk, session: Session, method: str, kind: str, k: float | None) -> Next:
    _, proposal = _proposal(desk, session, method, kind, k)
    return Next(session=replace(session, draft=proposal.token_positions, version=session.version + 1), tab="confirm")


# drawing --------------------------------------------------------------------------------------------------------------


def _file_key(method: str, target: Target) -> tuple[str, Target]:
    return method, Target() if method == "paper" else target


def _wanted(view: View) -> tuple[str, Target]:
    target = target_of(view.session, view.choices["target"], view.choices["k"])
    return _file_key(view.choices["method"], target)


def _signature(view: View) -> object:
    result = view.stamp(jobs.locate_file(*_wanted(view)), jobs.locate_file(FIRST_LOOK, Target()), "results/open.json")
    busy = view.busy_with("open", "locate", "triage")
    choice = (view.choices["target"], view.session.highlight, view.session.located)
    return result, busy, choice, view.failure("locate"), view.case is None


def _show_response(view: View, parts: Parts) -> Updates:
    opened = view.opened()
    return {parts.response: gr.update(value=figures.response_view(opened) if opened else {"tokens": []})}


def _show(view: View, parts: Parts) -> Updates:
    opened = view.opened()
    kind = view.choices["target"]
    pick: Updates = {
        parts.pick: gr.update(visible=kind == "tokens"),
        parts.k: gr.update(visible=kind in COUNTED),
    }
    if view.case is None or opened is None:
        empty = {"tokens": [], "empty": wording.NO_PROMPT}
        return pick | {
            parts.story: gr.update(value=stories.waiting(wording.NO_CASE if view.case is None else wording.LOADING)),
            parts.text: gr.update(value=empty),
        }
    messages = view.case.report.messages
    method, target = _wanted(view)
    result = view.case.read(jobs.locate_file(method, target), LocateResult)
    shown = result or view.case.read(jobs.locate_file(FIRST_LOOK, Target()), LocateResult)
    busy = view.busy_with("open", "locate", "triage")
    failure = view.failure("locate")
    marks = view.session.highlight
    if shown is None:
        told = wording_locate.LOCATING if busy else wording_locate.NOT_LOCATED_YET
        value = stories.waiting(told, wording.long_prompt(opened.occlusion))
        if failure and not busy:
            value = stories.fault(failure)
        return pick | {
            parts.story: gr.update(value=value),
            parts.text: gr.update(value=figures.token_view(opened, messages=messages)),
        }
    story = stories.located(shown, None if result or not busy else method, opened.occlusion)
    if result is None and not busy:
        story = stories.fault(failure) if failure else stories.waiting(wording_locate.NOT_LOCATED_YET)
    proposals = shown.proposals
    stands_out = [position for position, label in enumerate(shown.labels) if label == 1]
    return pick | {
        parts.story: gr.update(value=story),
        parts.text: gr.update(
            value=figures.token_view(opened, shown, messages=messages, suggested=stands_out, highlight=marks)
        ),
        parts.strip: gr.update(value=token_plots.strip(opened, shown, messages, marks)),
        parts.picture: gr.update(value=token_plots.token_map(opened, shown, messages, marks)),
        parts.trust: gr.update(value=stories.trust(shown, AttributionSettings().ig_gap_warning)),
        parts.tokens: gr.update(value=tables.token_table(opened, shown, messages)),
        parts.candidates: gr.update(
            value=tables.candidate_table(proposals, min(view.session.located, max(0, len(proposals) - 1)))
        ),
    }
