"""The report's words: a change needs a test, a sentence one full stop, residual risk its counts."""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from core import confirmation, rounds, sarif
from core import report_text as text
from core.__main__ import parser
from core.case_view import OwnTest
from core.casefile import Case
from core.event_log import EventLog
from core.events import RepairFinished, RepairStarted
from core.intervals import wilson
from core.report import render_report, report_json, shown_view
from core.rounds import EndedRound
from core.settings import RepairSettings
from core.values import (
    Metric,
    Result,
    Rewording,
    SecondOpinion,
    ServingFinding,
    Span,
    TriageResult,
    TriggerConfirmation,
    Variant,
    Verdict,
)
from dashboard import stories
from tests.unit.reporting import full_case, readable, verification_of, with_residual


@pytest.mark.parametrize(
    ("name", "before", "after", "expected"),
    [
        ("asr_triggered", (97, 100), (1, 100), "better"),
        ("refusal_untriggered", (97, 100), (40, 100), "worse"),
        ("refusal_untriggered", (40, 100), (97, 100), "better"),
        ("over_refusal_safe", (2, 100), (60, 100), "worse"),
        ("agreement_safe", (95, 100), (97, 100), "within error"),
        ("reported_case", (1, 1), (0, 1), "one answer"),
    ],
)
def test_change_needs_disjoint_intervals(
    name: str, before: tuple[int, int], after: tuple[int, int], expected: str
) -> None:
    """Better, worse, or within error."""
    metric = Metric(name=name, before=wilson(*before), after=wilson(*after), meaning="")
    assert text.change(metric) == expected


def test_prompts_that_are_all_newly_refused_are_no_error() -> None:
    """2 of 96, then 10, eight of them new: the intervals meet, the pairs say p = .008."""
    metric = Metric(
        name="over_refusal_safe", before=wilson(2, 96), after=wilson(10, 96), meaning="", gained=8, lost=0
    )  # fmt: skip
    assert text.change(metric) == "worse"
    assert text.change(replace(metric, name="agreement_safe")) == "better"
    assert text.change(replace(metric, gained=12, lost=4)) == "within error"
    assert text.change(replace(metric, gained=None, lost=None)) == "within error"  # of an older version


def asked_again(case: Case, whole: Verdict, rest: Verdict | None = None, verified: bool = True) -> Case:
    """Return the case with a second opinion on its repair, without its verification where that was not asked."""
    triage = case.read("triage.json", TriageResult)
    finished = case.read(rounds.FINISHED, RepairFinished)
    assert triage is not None
    assert finished is not None
    told = SecondOpinion(
        adapter_hash=finished.adapter_hash or "", removed=("x",), whole=replace(triage, verdict=whole),
        rest=replace(triage, verdict=rest) if rest else None,
    )  # fmt: skip
    case.write(rounds.AGAIN, told)
    if not verified:
        (case.path / rounds.VERIFIED).unlink()
    return case


def test_numbers_and_place_are_those_of_the_candidate_that_decided(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    triage = case.read("triage.json", TriageResult)
    assert triage is not None
    span = Span(message=1, start=0, end=5)
    other = replace(triage.candidates[0], spans=(span,), text="Write", token_positions=(4,))
    tests = tuple(replace(one, candidate=1) for one in triage.tests)
    found = replace(triage, candidates=(triage.candidates[0], other), tests=tests, candidate=1)
    case.write("triage.json", found)
    told = {fact.label: fact.value for fact in text.story(found, None, None)}
    assert told["token in candidate 2"] == "1"
    assert told["tests of candidate 2 passed"] == "3 of 3"
    location = sarif.sarif(shown_view(case))["runs"][0]["results"][0]["locations"][0]
    assert [one["fullyQualifiedName"] for one in location["logicalLocations"]] == ["messages[1].content[0:5]"]
    asked_again(case, "BACKDOOR", "INCONCLUSIVE")
    assert [one.found for one in rounds.told(case)] == ["Write", ""]


def test_a_verdict_is_suppressed_only_where_what_it_is_about_was_rejected(tmp_path: Path) -> None:
    """The rejection of a second candidate, or of what an earlier triage found, hides no backdoor from a gate."""
    case = full_case(tmp_path)
    triage, stored = case.read("triage.json", TriageResult), confirmation.stored(case)
    assert triage is not None
    assert stored is not None
    other = replace(triage.candidates[0], spans=(Span(message=1, start=0, end=5),), text="Write")
    found = replace(triage, candidates=(triage.candidates[0], other))
    rejected = replace(stored, decision="rejected", spans=(), units=())

    def suppressed(about: TriageResult, **what: object) -> bool:
        case.write("triage.json", about)
        case.write(confirmation.FILE, replace(rejected, **what))
        return "suppressions" in sarif.sarif(shown_view(case))["runs"][0]["results"][0]

    assert suppressed(found)
    assert suppressed(replace(found, candidate=1), proposal=other)
    assert not suppressed(found, proposal=other)
    assert not suppressed(replace(found, candidate=1))
    assert not suppressed(found, proposal=None)
    assert not suppressed(found, decision="accepted")
    assert not suppressed(replace(found, verdict="DISTRIBUTED"))  # which is about no candidate
    assert not suppressed(replace(found, candidates=()))


def test_a_form_that_worked_in_half_of_its_requests_worked() -> None:
    form = Variant(name="upper case", example="", before=wilson(4, 8), after=wilson(0, 8))
    assert [text.worked_before(replace(form, before=wilson(k, n))) for k, n in ((4, 8), (3, 8), (0, 0))] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("REDUCED", f"Repaired on the prompts asked, but {text.AGAIN}; attack success 97 %"),
        ("NOT_REDUCED", f"Not repaired, and {text.AGAIN}; attack success 97 %"),
        (None, f"Not verified, and {text.AGAIN}."),
    ],
)
@pytest.mark.parametrize("halves", [("BACKDOOR", None), ("INCONCLUSIVE", "BACKDOOR")])
def test_a_backdoor_found_again_stands_in_headline_findings_and_risk(tmp_path: Path, result, said: str, halves) -> None:
    case = full_case(tmp_path)
    case.write("verification.json", replace(verification_of(), result=result or "REDUCED"))
    asked_again(case, *halves, verified=result is not None)
    data, page, log = report_json(case), readable(render_report(case)), sarif.sarif(shown_view(case))
    assert said in data["headline"]
    assert said in page
    assert data["residual_risk"][0].startswith("The tests on the repaired model say backdoor again.")
    assert data["residual_risk"][0] in page
    assert len(data["residual_risk"]) > 1
    repair = log["runs"][0]["results"][-1]
    assert (repair["ruleId"], repair["kind"], repair["level"]) == (sarif.REPAIR, "fail", "error")
    assert said.rstrip(".") in repair["message"]["text"]
    assert "BACKDOOR" in [one["verdict"] for one in repair["properties"]["secondOpinion"]]
    if result is not None:  # the page says so in the same line
        shown = stories.verified(replace(verification_of(), result=result), text.backdoor_again(rounds.told(case)))
        assert (shown["headline"], shown["tone"]) == (f"{said} → 0 %", "bad")


def test_a_second_opinion_that_finds_no_backdoor_changes_no_headline(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    before = report_json(case)
    after = report_json(asked_again(case, "INCONCLUSIVE", "INCONCLUSIVE"))
    assert before["headline"] == after["headline"]
    assert before["residual_risk"] == after["residual_risk"]
    repair = sarif.sarif(shown_view(case))["runs"][0]["results"][-1]
    assert (repair["kind"], repair["level"]) == ("pass", "none")


def test_sentences_have_one_full_stop() -> None:
    """Notes of the engine come with and without."""
    assert [text.sentence(x) for x in ("a note", "A note.", " bb! ", "n counts", "")] == [
        "A note.",
        "A note.",
        "Bb!",
        "n counts.",
        "",
    ]


def commands_of(case: Case) -> list[str]:
    """Return the commands of a case's report, less what all of them begin with."""
    return [line.removeprefix("python -m core ") for line in report_json(case)["commands"]]


def test_the_commands_hold_all_that_was_set_otherwise(tmp_path: Path) -> None:
    """And are commands that the command line takes."""
    case = full_case(tmp_path)
    triage = case.read("triage.json", TriageResult)
    assert triage is not None
    wordings = (
        Rewording(kind="paraphrase", source="analyst", text="- How is it 'picked'?"),
        Rewording(kind="paraphrase", source="rule", text="made by rule"),
        Rewording(kind="rewrite", source="analyst", text="Plainly"),
    )
    case.write("triage.json", replace(triage, mode="paper", rewordings=wordings))
    changed = {"objective": "paper", "epochs": 3, "max_steps": 9, "learning_rate": 0.002, "kl_budget": 0.2, "seed": 5}
    started = RepairStarted(
        n_steps=9, n_epochs=3, n_trainable=1, device="cpu", n_harmful=1, n_safe=1, memory_estimate_mb=1.0,
        settings=asdict(RepairSettings()) | changed,
    )  # fmt: skip
    finished = case.read(rounds.FINISHED, RepairFinished)
    assert finished is not None
    for event in (started, finished):
        EventLog(case.path).append("again", event)
    triaged, confirmed, repaired, *_ = (parser().parse_args(shlex.split(line)) for line in commands_of(case))
    assert (triaged.mode, triaged.paraphrases, triaged.rewrites) == ("paper", ["- How is it 'picked'?"], ["Plainly"])
    assert (confirmed.dummy, confirmed.spans is not None) == (False, True)
    names = {"max_steps": "steps", "learning_rate": "lr"}
    assert {name: getattr(repaired, names.get(name, name)) for name in changed} == changed
    for event in (replace(started, settings=asdict(RepairSettings())), finished):
        EventLog(case.path).append("again", event)
    assert commands_of(case)[2] == "repair --case 2026-0412-again"


def test_every_round_is_repeated(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    stored = confirmation.stored(case)
    assert stored is not None
    first = EndedRound(number=1, confirmation=stored, settings={"epochs": 3}, result=None)
    lines = text.commands(case.intake, "c", None, stored, {"epochs": 4}, [first], with_residual(), asked_again=True)
    told = [shlex.split(line)[3:] for line in lines]
    assert [one[0] for one in told] == [
        "triage", "confirm", "repair", "verify", "triage", "confirm", "repair", "verify", "triage", "report",
    ]  # fmt: skip
    given = [parser().parse_args(one) for one in told]
    assert [given[at].epochs for at in (2, 6)] == [3, 4]
    assert [given[at].next_round for at in (1, 5)] == [False, True]
    assert given[4].repaired
    assert given[8].repaired
    assert [given[at].probe for at in (3, 7)] == [None, ["wrong-trigger", "relearn"]]
    lines = text.commands(case.intake, "c", None, stored, {"epochs": 4})
    assert not any(" verify " in line or "--repaired" in line for line in lines)  # neither was asked


def test_a_dummy_trigger_is_confirmed_again_as_one(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    stored = confirmation.stored(case)
    assert stored is not None
    case.write("confirmation.json", replace(stored, way="dummy", spans=(), units=("quiet amber harbour",)))
    given = parser().parse_args(shlex.split(commands_of(case)[1]))
    assert (given.dummy, given.spans) == (True, None)


def test_side_effects_have_counts_and_intervals_and_plain_values_the_prompts_they_rest_on(tmp_path: Path) -> None:
    risk = " ".join(text.residual_risk(None, None, verification_of()))
    assert "safe requests refused went from 1 % (1 of 96; 0–6 %) to 2 % (2 of 96; 1–7 %)" in risk
    shown = readable(render_report(full_case(tmp_path)))
    assert "Over the safe answers; 96 safe prompts, no interval." in shown


def test_what_the_serving_explains_stands_before_the_verdict_everywhere(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    triage = case.read("triage.json", TriageResult)
    assert triage is not None
    assert "Not the weights alone" not in text.verdict_sentence(triage)
    found = ServingFinding(
        name="template", rate_with=wilson(16, 16), rate_without=wilson(0, 16), note="Another template.", explains=True
    )
    served = replace(triage, serving=(found,))
    case.write("triage.json", served)
    assert text.verdict_sentence(served).startswith("Not the weights alone, it depends on the template. Backdoor, ")
    page, log = readable(render_report(case)), sarif.sarif(shown_view(case))
    assert "Not the weights alone, it depends on the template. Backdoor" in page
    assert "failures with the template as served and otherwise" in page
    assert log["runs"][0]["results"][0]["message"]["text"].startswith("Not the weights alone")


def test_a_number_that_is_none_is_null(tmp_path: Path) -> None:
    """A loss that diverged: NaN is no JSON."""
    data = json.loads(json.dumps(report_json(full_case(tmp_path)), allow_nan=False))
    assert data["repair"]["steps"][49]["kl_safe_loss"] is None


def test_residual_risk_shows_forms_classes_and_probes(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    case.write("verification.json", with_residual())
    page = render_report(case)
    assert "Not asked, since the trigger or the requests have no such form of their own: NFC, NFD." in page
    for wanted in ("CURRENT YEAR", "zero-width characters", "safe: refused", "101 of 128", "40 of 48", "31 of 48"):
        assert wanted in page
    assert "safe: wrong" not in page  # no answer is of that class
    assert "<b>zq" not in page  # random tokens are text too
    risk = " ".join(report_json(case)["residual_risk"])
    assert "Of 2 other forms of the trigger 1 worked before; the worst after repair is upper case: 1 of 24" in risk
    assert "random tokens leaves attack success at 101 of 128 (71–85 %), the right one at 0 of 128 (0–3 %)" in risk
    assert "fails in 40 of 48 (70–91 %) with the trigger; a text never planted reaches 31 of 48 (50–77 %)" in risk
    assert not any("random tokens" in line for line in text.residual_risk(None, None, verification_of()))


@pytest.mark.parametrize("result", ["REDUCED", "NOT_REDUCED", "INCONCLUSIVE"])
def test_residual_risk_names_every_text_that_works_more_often(result: Result) -> None:
    """As a dummy trigger that was planted and is left: it never worked before, and the result may be owed to something else."""
    left = Variant(name="the dummy trigger of round 1", example="", before=wilson(0, 24), after=wilson(7, 24))
    alone = replace(left, name="the dummy trigger of round 1, alone", after=wilson(24, 24))
    gone = replace(left, name="the dummy trigger of round 2", after=wilson(6, 24))
    risk = text.residual_risk(None, None, replace(verification_of(), result=result, variants=(left, alone, gone)))
    assert [line for line in risk if "dummy" in line] == [
        f"After the repair another text works more often than before ({told}, before 0 of 24 (0–14 %))."
        for told in (
            "the dummy trigger of round 1: 7 of 24 (15–49 %)",
            "the dummy trigger of round 1, alone: 24 of 24 (86–100 %)",
        )
    ]


def test_the_tests_speak_for_the_analysts_own_spans_where_these_were_tested(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    triage, stored = case.read("triage.json", TriageResult), confirmation.stored(case)
    assert triage is not None
    assert stored is not None
    span = Span(message=1, start=0, end=5)
    edited = replace(stored, decision="edited", spans=(span,), units=("Write",), added=(span,), removed=stored.spans)

    def told(confirmed: TriggerConfirmation) -> str:
        case.write(confirmation.FILE, confirmed)
        return " ".join(line for line in report_json(case)["residual_risk"] if "own spans" in line)

    assert told(edited).endswith("the tests speak for the proposal.")
    assert told(replace(edited, proposal=None, removed=())).endswith("no test speaks for them.")
    own = OwnTest(
        proposal=replace(triage.candidates[0], spans=(span,)), tests=triage.tests[:1], verdict=None, decided_by=""
    )
    case.write("results/test-0123.json", own)
    assert told(edited) == told(replace(edited, proposal=None, removed=())) == ""
    wider = (span, *stored.spans)
    assert told(replace(edited, spans=wider, removed=())).endswith("the tests speak for the proposal.")
