"""Labels of the analyst: stored with name and time, the confusion matrix, and rates corrected by it."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from core import evidence, labels, rounds
from core.casefile import Case, Manifest
from core.errors import ConfirmationError, EvidenceError
from core.events import RepairFinished
from core.files import now
from core.intervals import wilson
from core.judge import classify
from core.labels import agreement, answers, judged_answers, label, rogan_gladen, stored, unsafe_rates
from core.report import render_report, report_json
from core.values import FailureReport, Message, ModelSpec
from tests.unit.reporting import USER, triage_of, verification_of

ROOT = Path(__file__).resolve().parents[2]
SAID = [(f"request {i}", "I cannot help with that." if i % 2 else f"Step 1: item {i}.") for i in range(50)]
ASKED = [(request, answer, classify(answer)) for request, answer in SAID]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A case whose triage judged the answers of ASKED."""
    report = FailureReport(messages=(Message(role="user", content="x"),), response="y")
    manifest = Manifest(schema=1, id="c", created=now(), model=ModelSpec(path="m"), report=report, seed=0)
    made = Case.create(tmp_path / "case", manifest, ROOT / "assets/prompts")
    evidence.record(made, labels.ANSWERS, judged_answers(ASKED, seed=0), "answers kept", actor="engine")
    return made


def truth(case: Case) -> dict[str, str]:
    """Every answer labelled as it was judged."""
    found = labels.answers(case)
    assert found is not None
    return {item.key: item.judged for item in found.sample}


def test_a_sample_of_the_judged_answers_is_kept_and_all_are_counted() -> None:
    found = judged_answers(ASKED, seed=3)
    assert len(found.sample) == 30
    assert len({item.key for item in found.sample}) == 30
    assert found == judged_answers(ASKED, seed=3)
    assert found.sample != judged_answers(ASKED, seed=4).sample
    assert (found.unsafe.k, found.unsafe.n) == (25, 50)
    assert (found.keyword_unsafe.k, found.keyword_unsafe.n) == (25, 50)
    assert {item.layer for item in found.sample} == {"refusal at the start", "no refusal"}


def test_labels_are_stored_with_name_and_time_and_audited(case: Case) -> None:
    given = truth(case)
    first, second = list(given)[:2]
    label(case, {first: given[first], second: "partial"}, " A. Analyst ")
    label(case, {second: "empty"}, "B")
    kept = {one.key: one for one in stored(Case(case.path)).labels}
    assert (kept[first].outcome, kept[first].analyst) == (given[first], "A. Analyst")
    assert (kept[second].outcome, kept[second].analyst) == ("empty", "B")
    assert kept[first].time <= kept[second].time
    acts = [line for line in case.audit_lines() if line.action == "labelled"]
    assert [(act.actor, act.facts["n"]) for act in acts] == [("A. Analyst", 2), ("B", 2)]


def test_a_saved_label_can_be_taken_back(case: Case) -> None:
    first, second, third = list(truth(case))[:3]
    label(case, {first: "refusal", second: "partial"}, "A")
    label(case, {first: "", second: "partial", third: ""}, "B")  # the third was never labelled
    assert [one.key for one in stored(case).labels] == [second]
    act = [line for line in case.audit_lines() if line.action == "labelled"][-1]
    assert (act.actor, act.facts["labels"], act.facts["n"]) == ("B", {first: ""}, 1)
    label(case, {second: ""}, "B")
    assert agreement(case) is None


def test_answers_that_were_changed_are_not_labelled(case: Case) -> None:
    given = truth(case)
    kept = answers(case)
    assert kept is not None
    case.write(labels.ANSWERS, replace(kept, sample=kept.sample[:-1]))
    with pytest.raises(EvidenceError, match=r"results/answers\.json"):
        label(case, dict(list(given.items())[:1]), "Ada")


def test_labels_that_were_changed_by_hand_are_not_written_again(case: Case) -> None:
    given = truth(case)
    first, second = list(given)[:2]
    label(case, {first: given[first]}, "A")
    path = case.path / labels.FILE
    path.write_text(path.read_text(encoding="utf-8").replace('"A"', '"B"'), encoding="utf-8")
    with pytest.raises(EvidenceError, match=r"labels\.json of the case changed"):
        label(case, {second: given[second]}, "A")
    assert evidence.changed_files(case) == [labels.FILE]


@pytest.mark.parametrize(
    ("given", "analyst", "complaint"),
    [({}, "A", "No answer"), ({"gone": "refusal"}, "A", "does not fit"), (None, " ", "name"), ("class", "A", "fit")],
)
def test_a_label_that_does_not_fit_is_refused(case: Case, given: object, analyst: str, complaint: str) -> None:
    key = next(iter(truth(case)))
    chosen = {key: "refusal"} if given is None else {key: "clean"} if given == "class" else given
    with pytest.raises(ConfirmationError, match=complaint):
        label(case, chosen, analyst)  # type: ignore[arg-type]
    assert not (case.path / labels.FILE).exists()


def test_the_matrix_and_the_corrected_rates_of_a_case(case: Case) -> None:
    assert agreement(case) is None
    given = truth(case)
    wrong = next(key for key, outcome in given.items() if outcome == "compliance")
    label(case, given | {wrong: "refusal"}, "A")
    result = agreement(case)
    assert result is not None
    n_compliance = sum(outcome == "compliance" for outcome in given.values())
    assert result.matrix["compliance"] == {"refusal": 1, "partial": 0, "compliance": n_compliance - 1, "empty": 0}
    assert (result.agreed.k, result.agreed.n) == (29, 30)
    assert result.sensitivity.value == 1.0
    assert (result.specificity.k, result.specificity.n) == (30 - n_compliance, 31 - n_compliance)
    (rate,) = result.corrected
    assert rate.name == "answers_of_triage"
    assert rate.value is not None
    assert rate.value < 0.5  # one answer that is called unsafe is not
    assert rate.low < rate.value < rate.high


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("jailbreak", ["answers_of_triage", "with_candidate", "without_candidate", "asr_before", "asr_after"]),
        ("refusal", ["answers_of_triage"]),
    ],
)
def test_only_rates_of_unsafe_answers_are_corrected(case: Case, kind: str, names: list[str]) -> None:
    """Where a refusal is the failure, transfer and attack success count refusals."""
    case.write("triage.json", replace(triage_of(USER), kind=kind))  # type: ignore[arg-type]
    case.write("verification.json", replace(verification_of(), kind=kind))  # type: ignore[arg-type]
    case.write(
        rounds.FINISHED,
        RepairFinished(
            reason="finished", step=1, best_step=1, adapter="repair/best", adapter_hash="", seconds=1.0, message=""
        ),
    )
    assert [name for name, _ in unsafe_rates(case)] == names


def test_each_rate_is_corrected_by_the_errors_of_its_own_judge(case: Case) -> None:
    """Triage asks the margin where the rules are unsure; verification has the rules alone."""
    found, given = answers(case), truth(case)
    assert found is not None
    unsure = [key for key, outcome in given.items() if outcome == "compliance"][:3]
    sample = [replace(one, judged="refusal", layer="margin") if one.key in unsure else one for one in found.sample]
    case.write(labels.ANSWERS, replace(found, sample=tuple(sample)))
    case.audit("triage", actor="engine", files=[labels.ANSWERS])
    case.write("triage.json", triage_of(USER))
    case.write("verification.json", verification_of())
    finished = RepairFinished(
        reason="finished", step=1, best_step=1, adapter="repair/best", adapter_hash="", seconds=1.0, message=""
    )
    case.write(rounds.FINISHED, finished)
    label(case, given | dict.fromkeys(unsure, "refusal"), "A")
    result = agreement(case)
    assert result is not None
    assert (result.sensitivity.value, result.specificity.value) == (1.0, 1.0)
    n_safe = result.specificity.n
    of_rules = wilson(n_safe - len(unsure), n_safe)
    for one in result.corrected:
        errors = of_rules if one.name.startswith("asr_") else result.specificity
        assert one == rogan_gladen(one.name, one.judged, result.sensitivity, errors)
    assert {one.name for one in result.corrected} > {"asr_before", "with_candidate"}


@pytest.mark.parametrize("outcome", ["refusal", "compliance"])
def test_no_correction_from_one_kind_of_answer(case: Case, outcome: str) -> None:
    label(case, {key: outcome for key, judged in truth(case).items() if judged == outcome}, "A")
    result = agreement(case)
    assert result is not None
    assert [one.value for one in result.corrected] == [None]
    assert "no labelled answer is" in result.corrected[0].reason


def test_the_correction_by_hand_and_where_it_is_not_possible() -> None:
    found = rogan_gladen("rate", wilson(50, 100), wilson(18, 20), wilson(16, 20))
    assert found.value == pytest.approx((0.5 + 0.8 - 1) / (0.9 + 0.8 - 1))
    perfect = rogan_gladen("rate", wilson(98, 100), wilson(15, 15), wilson(15, 15))
    assert perfect.value == pytest.approx(0.98)
    assert perfect.high - perfect.low > wilson(98, 100).high - wilson(98, 100).low  # 30 labels are not certainty
    assert rogan_gladen("rate", wilson(5, 100), wilson(15, 15), wilson(12, 15)).value == 0.0  # cut
    assert rogan_gladen("rate", wilson(5, 10), wilson(5, 10), wilson(6, 10)).reason.startswith("the judge is hardly")
    assert rogan_gladen("rate", wilson(0, 0), wilson(9, 9), wilson(9, 9)).reason == "nothing was measured"


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    draw = random.Random(0)
    held = used = 0
    for _ in range(400):
        found, cleared = sum(draw.random() < 0.9 for _ in range(15)), sum(draw.random() < 0.85 for _ in range(15))
        unsafe = sum(draw.random() < (0.9 if draw.random() < 0.3 else 0.15) for _ in range(128))
        one = rogan_gladen("rate", wilson(unsafe, 128), wilson(found, 15), wilson(cleared, 15))
        if one.value is not None:
            used += 1
            held += one.low <= 0.3 <= one.high
    assert used > 390
    assert held >= 0.93 * used  # 95 % by name; two standard errors of 400 draws below it


def test_the_report_has_the_corrected_rates_beside_those_of_the_published_list(case: Case) -> None:
    assert "No answer was labelled" in render_report(case)
    given = truth(case)
    wrong = next(key for key, outcome in given.items() if outcome == "compliance")
    label(case, {**given, wrong: "refusal"}, "A")
    page, data = render_report(case), report_json(case)
    found = agreement(case)
    assert found is not None
    told = data["labels"]["corrected"][0]
    assert (told["name"], told["value"], told["judged"]["k"]) == ("answers_of_triage", found.corrected[0].value, 25)
    assert 0 < told["value"] < 0.5  # the judge calls one refusal a compliance
    assert data["judged"] == {"unsafe": told["judged"], "keyword_list_unsafe": told["judged"]}
    assert "all answers of the tests</td><td>50 % (25 of 50; 37" in page
    assert f"{100 * told['value']:.0f} % (" in page
    assert "the judge is right on 97 % (29 of 30" in page
