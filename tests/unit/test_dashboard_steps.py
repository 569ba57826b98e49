# ruff: noqa: F811  (fixtures of another module)
"""What the steps' handlers lead to, and what they draw, on a page that nobody looks at."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_args
from urllib.parse import parse_qs

import gradio as gr
import pytest

from core import confirmation, jobs, labels, lease, rounds
from core.casefile import Case
from core.errors import AttributionError, BusyError, ReportError
from core.event_log import EventLog
from core.events import RepairFinished, RepairStarted
from core.jobs import CaseStatus
from core.settings import RepairSettings
from core.values import KindName, Verdict
from dashboard import stories, wording_verify
from dashboard.app import build
from dashboard.components import page_css
from dashboard.desk import Desk, Next, Session, View, address
from dashboard.session import Roots, create_case, read_intake
from dashboard.steps import case as case_step
from dashboard.steps import confirm, locate, repair, residual, verdict, verify
from tests.unit.reporting import full_case, triage_of, verification_of
from tests.unit.test_containment import opened_as
from tests.unit.test_dashboard_page import REPORT, case, redraw, roots  # noqa: F401  (fixtures)


def block(page: gr.Blocks, elem_id: str) -> gr.blocks.Block:
    return next(one for one in page.blocks.values() if one.elem_id == elem_id)


def listeners(page: gr.Blocks, elem_id: str, event: str) -> list:
    """Return the functions that run on an event of a component."""
    target = (block(page, elem_id)._id, event)
    return [fn for fn in page.fns.values() if target in fn.targets]


def chosen(key: int) -> SimpleNamespace:
    """A row that is chosen in a table."""
    return SimpleNamespace(_data={"key": key})


def other_case(roots: Roots) -> Case:
    return create_case(roots, "other", read_intake(json.dumps(REPORT), None), roots.models / "model", None)


# step 1 ---------------------------------------------------------------------------------------------------------------


def fields_of(desk: Desk) -> tuple:
    """Stand-ins for the lists and the fields of step 1."""
    with gr.Blocks():
        lists, fields = tuple(gr.Dropdown([]) for _ in range(3)), tuple(gr.Textbox() for _ in range(2))
    return lists, fields


def test_a_refreshed_page_takes_its_case_and_its_name_along(roots: Roots, case: Case) -> None:
    """But not from somebody who took the case meanwhile, and no other tab takes what nobody writes."""
    desk, where = build(roots).desk, f"?case={case.path.name}&step=confirm"
    lists, fields = fields_of(desk)

    def attach(kept: str) -> Next:
        return case_step._attach(desk, lists, fields, Session(browser="mine"), where, kept)

    attach("")
    attach("left=another&analyst=")
    assert lease.current(case) is None
    back = attach(f"left={case.path.name}&analyst=A.+B")
    found = lease.current(case)
    assert found is not None
    assert (found.holder, found.analyst) == ("mine", "A. B")
    assert back.updates[fields[0]]["value"] == "A. B"
    assert back.session is not None
    assert back.session.analyst == "A. B"
    lease.take(case, "Grace", "hers", over=True)
    attach(f"left={case.path.name}&analyst=A.+B")
    with pytest.raises(BusyError, match="Grace"):
        lease.take(case, "A. B", "mine")


@pytest.mark.parametrize("draft", [None, (), (0,), (1, 2)])
def test_a_refresh_keeps_candidate_and_marks(tmp_path: Path, draft: tuple[int, ...] | None) -> None:
    case = full_case(tmp_path)
    before = Session(case=case.path.name, draft=draft)
    kept = parse_qs(address(before, "confirm"))["chosen"][0]
    assert confirm.chosen(case, Session(case=case.path.name), kept) == before


@pytest.mark.parametrize(
    "kept",
    [
        "",
        "marks=1.99999",
        "marks=-1",
        "marks=a",
        "marks=" + "9" * 5000,
        "candidate=99",
        "candidate=-1",
        "candidate=x",
        "%",
    ],
)
def test_what_a_tab_kept_and_does_not_fit_the_case_is_left(tmp_path: Path, kept: str) -> None:
    case = full_case(tmp_path)
    session = Session(case=case.path.name)
    assert confirm.chosen(case, session, kept) == session


@pytest.mark.parametrize("name", ["triage.json", "results/open.json"])
def test_a_damaged_result_keeps_nobody_from_the_case(tmp_path: Path, name: str) -> None:
    case = full_case(tmp_path)
    (case.path / name).write_text("{", encoding="utf-8")
    found = confirm.chosen(case, Session(case=case.path.name), "candidate=0&marks=1")
    assert found.candidate == 0
    assert found.draft == (None if name == "results/open.json" else (1,))


def test_marks_wait_for_no_model(case: Case) -> None:
    """A case that was not opened yet has no tokens to mark."""
    assert confirm.chosen(case, Session(case=case.path.name), "candidate=0&marks=1").draft is None


def test_a_case_that_is_made_or_opened_is_in_the_list(roots: Roots, case: Case) -> None:
    page = build(roots)
    lists, fields = fields_of(page.desk)
    lease.take(case, "Ada", "hers")  # who only reads starts no worker
    opened = case_step._resume(page.desk, lists, fields, Session(), case.path.name)
    made = other_case(roots)
    assert opened.updates[lists[0]]["choices"] == [case.path.name]
    (refresh,) = [fn for fn in listeners(page, "step-case", "select") if fn.fn]
    lists_of_page = [block(page, name) for name in ("case-list", "model-folder", "adapter-folder")]
    assert set(refresh.fn()[lists_of_page[0]]["choices"]) == {case.path.name, made.path.name}
    assert refresh.outputs == lists_of_page


def test_hashing_is_said_while_it_goes_on(roots: Roots) -> None:
    """A fault of the form is there at once, and nothing is hashed for it."""
    page = build(roots)
    (click,) = listeners(page, "case-open", "click")
    desk, button = page.desk, block(page, "case-open")
    steps = click.fn(Session(case="before"), json.dumps(REPORT), "model", "", None, False)
    first = next(steps)
    assert (first[desk.strip]["value"]["tone"], first[button]["interactive"]) == ("busy", False)
    assert not roots.cases.exists()
    (last,) = list(steps)
    ((before, made),) = [value for one, value in last.items() if isinstance(one, gr.State)]
    assert last[button]["interactive"]
    assert (before, made.path.parent) == ("before", roots.cases)
    (only,) = list(click.fn(Session(), "", "model", "", None, False))
    assert isinstance(only[click.outputs[0]][1], ReportError)


def test_a_new_case_takes_nobody_away_from_one_opened_meanwhile(roots: Roots, case: Case) -> None:
    desk = build(roots).desk
    lists, fields = fields_of(desk)
    after = case_step._created(desk, lists, fields, Session(case="meanwhile"), ("", case))
    assert (after.session, after.tab) == (Session(case="meanwhile"), None)
    assert case.path.name in str(after.say)
    assert after.updates[lists[0]]["choices"] == [case.path.name]
    assert jobs.requests(case) == []


# step 3 ---------------------------------------------------------------------------------------------------------------


def test_no_number_of_tokens_stops_the_page(roots: Roots) -> None:
    """A typed 0 is answered by a sentence; every other handler takes the default."""
    desk = build(roots).desk
    assert [desk.choices["k"].preprocess(k) for k in (0, -3, None)] == [0, -3, None]
    for kind in ("contrast", "first_k"):
        with pytest.raises(AttributionError, match="1 or more"):
            locate._choose(desk, Session(), "occlusion", kind, 0)
    assert locate._choose(desk, Session(), "occlusion", "response", 0).session == Session()


def test_the_candidates_of_step_3_are_not_those_of_step_4() -> None:
    after = locate._select_candidate(chosen(2), Session(candidate=1))
    assert after.session == Session(candidate=1, located=2)


def test_the_last_of_quick_changes_counts(roots: Roots) -> None:
    """A selector in step 3 that is changed twice, a mark in step 4 beside another; the editor's marks go along as they are then."""
    page = build(roots)
    found = [listeners(page, f"locate-{name}", "change") for name in ("method", "target", "k")]
    found.append(listeners(page, "confirm-editor", "input"))
    assert [[one.trigger_mode for one in on] for on in found] == [["always_last"]] * 4
    assert block(page, "confirm-editor") in found[-1][0].inputs
    assert not found[-1][0].collects_event_data  # gradio sends the first event's again


def test_the_picker_of_answer_tokens_says_what_it_is_for(roots: Roots) -> None:
    page = build(roots)
    picker, editor = (block(page, name).js_on_load for name in ("locate-response", "confirm-editor"))
    assert '"spoken": "reported answer, choose the tokens to explain", "confirms": false' in picker
    assert '"spoken": "prompt, select the trigger", "confirms": true' in editor


def test_every_focus_ring_stands_out() -> None:
    """At least 3 to 1 against the page, in both themes. Source: WCAG 2.2, 1.4.11."""
    css = page_css()
    dark = css.index("body.dark {")

    def luminance(name: str, start: int) -> float:
        found = re.search(rf"{name}: #(\w{{6}});", css[start:]) or re.search(rf"{name}: #(\w{{6}});", css)
        assert found
        red, green, blue = (int(found[1][i : i + 2], 16) / 255 for i in (0, 2, 4))
        parts = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in (red, green, blue)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    rings = set(re.findall(r":focus[^{}]*\{[^}]*outline: 2px solid var\((--[\w-]+)\)", css))
    assert rings
    for name in rings:
        for start in (0, dark):
            light, deep = sorted((luminance(name, start), luminance("--pt-back", start)), reverse=True)
            assert (light + 0.05) / (deep + 0.05) >= 3, name


# step 4 ---------------------------------------------------------------------------------------------------------------


def test_the_last_tested_span_is_found_again_after_a_refresh(case: Case) -> None:
    """Unless triage has found something since, or a candidate is looked at."""
    names = []
    for stage in ("test", "minimise"):
        request = jobs.ask(case, stage, {"spans": [{"message": 0, "start": 0, "end": 4}]}, start=False)
        names.append(verdict.result_file(stage, request.split("-")[0]))
    assert verdict.tested(case, Session()) == ""
    (case.path / names[0]).write_text("{}")
    assert verdict.tested(case, Session()) == names[0]
    (case.path / names[1]).write_text("{}")
    assert verdict.tested(case, Session()) == names[1]
    assert verdict.tested(case, Session(tested="")) == ""
    assert verdict.tested(case, Session(tested=names[0])) == names[0]
    (case.path / "triage.json").write_text("{}")
    os.utime(case.path / "triage.json", ns=(2**62, 2**62))
    assert verdict.tested(case, Session()) == ""


def test_a_candidate_that_is_looked_at_hides_the_tested_span(roots: Roots, case: Case) -> None:
    desk = build(roots).desk
    after = confirm._select(desk, chosen(0), Session(case=case.path.name, tested="results/test-x.json"))
    assert after.session is not None
    assert after.session.tested == ""


def test_results_of_other_steps_leave_the_label_sheet(roots: Roots, case: Case) -> None:
    """What is labelled there and not saved would be at risk."""
    session = Session(case=case.path.name)
    _, shown = redraw(roots, session, {})
    case.write("verification.json", verification_of())
    second, shown = redraw(roots, session, shown)
    assert "label-story" in second
    assert "label-answers" not in second
    case.write(labels.FILE, labels.Labels())
    assert "label-answers" in redraw(roots, session, shown)[0]


def test_a_dummy_trigger_is_offered_where_no_text_was_found(case: Case) -> None:
    """For unsafe answers only."""
    parts = SimpleNamespace(decision="decision", second="second", dummy="dummy")
    view = View(session=Session(), case=case, status=None, lines=(), choices={})
    offered = []
    for word in (*get_args(Verdict), None):
        for kind in get_args(KindName):
            case.write("triage.json", replace(triage_of("x" * 80, word), kind=kind))
            if confirm._show_decision(view, parts)["dummy"]["visible"]:  # type: ignore[arg-type, index]
                offered.append((word, kind))
    assert offered == [("DISTRIBUTED", "jailbreak"), ("INCONCLUSIVE", "jailbreak")]


# step 5 ---------------------------------------------------------------------------------------------------------------


def view_of(case: Case, settings: RepairSettings, asked: dict) -> View:
    """A case whose repair was asked for with `asked` and runs with `settings`."""
    request = jobs.ask(case, "repair", asked, start=False)
    started = RepairStarted(
        n_steps=9, n_epochs=1, n_trainable=1, device="cpu", n_harmful=1, n_safe=1, memory_estimate_mb=1.0,
        settings=vars(settings),
    )  # fmt: skip
    EventLog(case.path).append(request, started)
    status = CaseStatus(state="running", stage="repair", request=request)
    return View(session=Session(), case=case, status=status, lines=case.current_events(), choices={})


@pytest.mark.parametrize(
    ("typed", "text", "hint"), [(None, "", "0.0003, by model size"), (0.0003, "0.0003", "by model size")]
)
def test_a_learning_rate_that_nobody_typed_stays_that_of_the_model(
    case: Case,
    typed: float | None,
    text: str,
    hint: str,
) -> None:
    asked = {"epochs": 3} | ({"learning_rate": typed} if typed else {})
    view = view_of(case, RepairSettings(epochs=3, learning_rate=0.0003), asked)
    with gr.Blocks():
        form = {name: repair._field(name) for name in (*repair.FEW, *repair.ADVANCED)}
    running = repair._show_form(view, False, form)
    assert (running[form["epochs"]]["value"], running[form["epochs"]]["interactive"]) == (3, False)
    rate = running[form["learning_rate"]]
    assert (rate["value"], rate["placeholder"]) == (text, hint)
    idle = repair._show_form(replace(view, status=None), False, form)
    assert "value" not in idle[form["epochs"]]
    assert idle[form["learning_rate"]]["placeholder"] == "by model size"


def test_what_was_counted_is_said_before_a_start(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirmation, "validity", lambda case: None)
    case.write("results/open.json", opened_as("ef" * 32))
    with gr.Blocks():
        form = {name: repair._field(name) for name in (*repair.FEW, *repair.ADVANCED)}
    names = ("story", "start", "resume", "keep", "discard", "onward")
    parts = SimpleNamespace(**dict(zip(names, names, strict=True)), form=form)
    view, told = View(session=Session(), case=case, status=None, lines=(), choices={}), []
    for counted in ({"mb": 66.2}, {"mb": 66.2, "unreached": 0.595}):  # the first as of an older version
        case.write(rounds.MEMORY, counted)
        told.append(dict(repair._show(view, False, parts)["story"]["value"]["facts"]))  # type: ignore[arg-type, index]
    experts = "60 % of the parameters lie in experts that the adapter does not reach"
    assert [one.get("experts") for one in told] == [None, experts]
    assert {one["memory"] for one in told} == {"estimated at most 66 MB with default settings"}


def test_the_settings_of_one_case_are_not_those_of_the_next(roots: Roots, case: Case) -> None:
    _, shown = redraw(roots, Session(case=case.path.name), {})
    case.write(rounds.MEMORY, {"mb": 1.0})
    same, _ = redraw(roots, Session(case=case.path.name), shown)
    assert "value" not in same["setting-epochs"]  # what was typed stays
    first, _ = redraw(roots, Session(case=other_case(roots).path.name), shown)
    values = {name: first[f"setting-{name}"]["value"] for name in (*repair.FEW, *repair.ADVANCED)}
    assert repair.changed_settings(values) == {}


@pytest.mark.parametrize("how", ["keep", "discard"])
@pytest.mark.parametrize("since", [None, {"resume": True}, {"epochs": 2}])
def test_a_repair_that_broke_off_is_not_resumed_where_it_was_to_be_discarded(
    case: Case, how: jobs.How, since: dict | None
) -> None:
    """Its worker may end by itself before it hears of that; until another takes the case up, its checkpoints lie there. So it is where it
    was to go on; one from the start that was discarded in its preparations took no checkpoint away."""
    view = view_of(case, RepairSettings(), {})
    assert view.status is not None
    broken = replace(view, status=replace(view.status, state="failed"))
    assert not repair._can_resume(broken)
    (case.path / "repair/checkpoint-000003").mkdir(parents=True)
    (case.path / "repair/checkpoint-000003/state.json").write_text("{}", encoding="utf-8")
    assert repair._can_resume(broken)
    last = view.lines[0].request if since is None else jobs.ask(case, "repair", since, start=False)
    jobs.stop(case, last, how)
    afresh = since is not None and not since.get("resume")
    assert repair._can_resume(broken) == (how == "keep" or afresh)


def test_a_repair_that_was_discarded_is_told_of_beside_the_one_that_counts() -> None:
    ended = RepairFinished(
        reason="kept",
        step=3,
        best_step=2,
        adapter="repair/best",
        adapter_hash="a",
        seconds=1.0,
        message="Best: step 2.",
    )
    other = replace(ended, reason="discarded", adapter=None, message="Nothing was kept.")
    told = [stories.repair(None, None, [], None, ended, False, since)["note"] for since in (None, other)]
    assert told == ["", "Nothing was kept. The repair that was there before still stands."]


# step 6 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("adapter", "visible"), [("repair/best", True), (None, False)])
def test_a_second_opinion_needs_an_adapter(roots: Roots, case: Case, adapter: str | None, visible: bool) -> None:
    """A repair that was discarded has ended too, and left none."""
    case.write(
        rounds.FINISHED,
        RepairFinished(
            reason="kept" if adapter else "discarded", step=1, best_step=None, adapter=adapter, adapter_hash=None,
            seconds=1.0, message="",
        ),
    )  # fmt: skip
    first, _ = redraw(roots, Session(case=case.path.name), {})
    assert [first[name]["visible"] for name in ("again-run", "verify-run", "to-verify")] == [visible] * 3


def test_a_report_can_be_written_of_any_case_a_repaired_model_only_where_there_is_one(
    roots: Roots, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(jobs, "ask", lambda case, *what: asked.append(what))
    buttons = ("verify-export", "verify-redacted", "verify-merged")
    closed, shown = redraw(roots, Session(), {})
    assert [closed[name]["interactive"] for name in buttons] == [False] * 3
    half, _ = redraw(roots, Session(case=case.path.name), shown)
    assert [half[name]["interactive"] for name in buttons] == [True, True, False]
    assert half["verify-export"]["value"] == wording_verify.REPORT
    desk = build(roots).desk
    verify._write(desk, False, Session(case=case.path.name))
    assert asked == [("report",)]
    whole = full_case(roots.cases)
    drawn, _ = redraw(roots, Session(case=whole.path.name), shown)
    assert [drawn[name]["interactive"] for name in buttons] == [True] * 3
    assert drawn["verify-export"]["value"] == wording_verify.REPORT_AND_EXPORT
    verify._write(desk, False, Session(case=whole.path.name))
    assert asked[1:] == [("report",), ("export", {"merged": False})]


@pytest.mark.parametrize("way", ["trigger", "dummy"])
def test_probes_are_offered_for_a_trigger_text_only(roots: Roots, way: Literal["trigger", "dummy"]) -> None:
    whole = full_case(roots.cases)
    stored = confirmation.stored(whole)
    assert stored is not None
    whole.write(confirmation.FILE, replace(stored, way=way))
    drawn, _ = redraw(roots, Session(case=whole.path.name), {})
    assert drawn["residual-story"]["value"]  # it is verified
    assert [drawn[f"probe-{name}"]["interactive"] for name in residual.PROBES] == [way == "trigger"] * 2
