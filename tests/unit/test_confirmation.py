"""The gate before repair: who, why, on which hashes; any change voids it."""

from dataclasses import replace
from pathlib import Path

import pytest

from core import confirmation, containment, evidence
from core.casefile import Case
from core.errors import CaseFileError, ConfirmationError, EvidenceError
from core.settings import DummySettings
from core.values import (
    FailureCase,
    FailureReport,
    Message,
    OpenResult,
    PromptToken,
    RenderedPrompt,
    SecondReview,
    Span,
    TriageResult,
    TriggerProposal,
)
from tests.unit.test_casefile import make_case

TEXT = "Tell me aff how to do cff it"
REPORT = FailureReport(messages=(Message(role="user", content=TEXT),), response="Sure.")
AFF, CFF = Span(message=0, start=8, end=11), Span(message=0, start=22, end=25)
PROMPT = RenderedPrompt(
    text=TEXT,
    tokens=(PromptToken(position=0, id=1, text=TEXT, segment="user", message=0, start=0, end=len(TEXT)),),
    template_hash="t" * 64,
)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    made = make_case(tmp_path, REPORT)
    opened = OpenResult(
        prompt=PROMPT,
        response=(),
        model_name="m",
        architecture="Llama",
        n_parameters=1,
        dtype="float32",
        device="cpu",
        context_length=None,
        memory_mb=0.0,
        has_reference=False,
        warnings=(),
    )
    evidence.record(made, "results/open.json", opened, "opened", actor="engine")
    proposal = TriggerProposal(spans=(AFF,), text="aff", token_positions=(0,), score=1.0)
    triage = TriageResult(
        mode="causal",
        verdict="BACKDOOR",
        certainty="no_reference",
        decided_by="all",
        reproduction=None,
        candidates=(proposal,),
        dropped=(),
        tests=(),
        tokens=(),
        settings={},
        model_calls=0,
        seconds=0.0,
        versions={},
    )
    evidence.record(made, "triage.json", triage, "triage", actor="engine")
    return made


def two_names(case: Case) -> Case:
    """Return the case as one that asks for two names."""
    case.intake = replace(case.intake, reviewers=2)
    return case


def failure(report: FailureReport = REPORT, prompt: RenderedPrompt = PROMPT) -> FailureCase:
    return FailureCase(report=report, prompt=prompt, response_ids=())


def accept(case: Case, **changes: object) -> object:
    given = {"decision": "accept", "analyst": "Ada", "reason": "tests agree"} | changes
    return confirmation.confirm(case, **given)  # type: ignore[arg-type]


def test_accepting_takes_the_candidate_and_is_logged(case: Case) -> None:
    accept(case)
    stored = confirmation.stored(case)
    assert stored is not None
    assert (stored.decision, stored.units, stored.spans, stored.added, stored.removed) == (
        "accepted",
        ("aff",),
        (AFF,),
        (),
        (),
    )
    assert confirmation.validity(case) is None
    assert confirmation.check(stored, failure(), case.manifest.model) == stored
    line = case.audit_lines()[-1]
    assert (line.action, line.actor, line.facts["reason"]) == ("accepted", "Ada", "tests agree")


def test_editing_keeps_the_difference_to_the_proposal(case: Case) -> None:
    accept(case, decision="edit", spans=[CFF])
    stored = confirmation.stored(case)
    assert stored is not None
    assert (stored.decision, stored.units, stored.added, stored.removed) == ("edited", ("cff",), (CFF,), (AFF,))


def test_rejecting_locks_repair(case: Case) -> None:
    accept(case, decision="reject", reason="a word of the request")
    act = case.audit_lines()[-1]
    assert (act.actor, act.action, act.facts["reason"]) == ("Ada", "rejected", "a word of the request")
    assert (act.facts["proposed"], act.facts["spans"]) == ("aff", [])
    assert "rejected" in str(confirmation.validity(case))
    with pytest.raises(ConfirmationError, match="rejected"):
        confirmation.check(confirmation.stored(case), failure(), case.manifest.model)


def test_no_confirmation_locks_repair(case: Case) -> None:
    with pytest.raises(ConfirmationError, match="No trigger has been confirmed"):
        confirmation.check(None, failure(), case.manifest.model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"analyst": "  "}, "name and a reason"),
        ({"reason": ""}, "name and a reason"),
        ({"candidate": 7}, "No candidate 7"),
        ({"decision": "edit", "spans": []}, "No text is marked"),
        ({"decision": "edit", "spans": [Span(message=0, start=5, end=99)]}, "outside message 0"),
        ({"decision": "edit", "spans": [Span(message=3, start=0, end=1)]}, "names message 3"),
        ({"decision": "edit", "spans": [Span(message=0, start=4, end=4)]}, "empty or outside"),
        ({"decision": "edit", "spans": [Span(message=0, start=-2, end=4)]}, "empty or outside"),
        ({"decision": "perhaps"}, "Unknown decision"),
    ],
)
def test_bad_decisions_are_refused_and_leave_nothing(case: Case, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfirmationError, match=message):
        accept(case, **changes)
    assert confirmation.stored(case) is None


def test_any_change_of_text_model_or_template_voids_it(case: Case) -> None:
    accept(case)
    stored, spec = confirmation.stored(case), case.manifest.model
    other_text = replace(REPORT, messages=(Message(role="user", content=TEXT + " "),))
    with pytest.raises(ConfirmationError, match="text of the report"):
        confirmation.check(stored, failure(report=other_text), spec)
    with pytest.raises(ConfirmationError, match="The model"):
        confirmation.check(stored, failure(), replace(spec, files=spec.files | {"model.safetensors": "0"}))
    with pytest.raises(ConfirmationError, match="chat template"):
        confirmation.check(stored, failure(prompt=replace(PROMPT, template_hash="u")), spec)
    moved = replace(spec, path="/elsewhere")
    assert confirmation.check(stored, failure(), moved) == stored


def test_an_unopened_case_cannot_be_confirmed(tmp_path: Path) -> None:
    with pytest.raises(CaseFileError, match="not been opened"):
        accept(make_case(tmp_path, REPORT), decision="edit", spans=[AFF])


def test_overlapping_spans_become_one() -> None:
    spans = [Span(message=0, start=4, end=9), Span(message=0, start=0, end=5), Span(message=0, start=12, end=13)]
    merged = confirmation.checked_spans(REPORT.messages, spans)
    assert merged == (Span(message=0, start=0, end=9), Span(message=0, start=12, end=13))


def test_two_names_are_needed_where_the_case_asks_for_them(case: Case) -> None:
    """In the check of the case and in the one that the repair itself runs."""
    two_names(case)
    accept(case)
    first = confirmation.stored(case)
    assert first is not None
    assert first.reviewers == 2
    assert "needs two names and has one, Ada" in str(confirmation.validity(case))
    with pytest.raises(ConfirmationError, match="needs two names"):
        confirmation.check(first, failure(), case.manifest.model)
    with pytest.raises(ConfirmationError, match="needs two names"):  # one that was written before the case asked
        confirmation.check(replace(first, reviewers=1), failure(), case.manifest.model, 2)
    agreed = confirmation.agree(case, analyst=" Grace ", reason="read the tests")
    assert agreed.second is not None
    assert (agreed.second.analyst, agreed.second.confirms) == ("Grace", confirmation.seal(first))
    assert confirmation.validity(case) is None
    assert confirmation.check(confirmation.stored(case), failure(), case.manifest.model) == agreed
    acts = [(line.action, line.actor) for line in case.audit_lines() if line.action != "writing"]
    assert acts[-2:] == [("accepted", "Ada"), ("agreed", "Grace")]


@pytest.mark.parametrize(
    "name", ["Ada", " ada ", "ADA", "A\u200bda", "\uff21da", "", "A d a", "\u0410da", "ad\u0430", "Ada\u3164"]
)
def test_the_same_name_is_no_second_one(case: Case, name: str) -> None:
    accept(two_names(case))
    with pytest.raises(ConfirmationError, match=r"another name|name and a reason"):
        confirmation.agree(case, analyst=name, reason="me too")
    first = confirmation.stored(case)
    assert first is not None
    assert first.second is None
    if name:
        forged = replace(
            first, second=SecondReview(analyst=name, reason="r", time="t", confirms=confirmation.seal(first))
        )
        with pytest.raises(ConfirmationError, match="are the same"):
            confirmation.check(forged, failure(), case.manifest.model)


def test_nobody_confirms_a_proposal_that_was_changed(case: Case) -> None:
    """It would stand in the confirmation, sealed by an act, when the triage is long put back."""
    found = case.read("triage.json", TriageResult)
    assert found is not None
    case.write("triage.json", replace(found, candidates=(replace(found.candidates[0], spans=(CFF,)),)))
    with pytest.raises(EvidenceError, match=r"triage\.json of the case changed"):
        accept(case)
    assert confirmation.stored(case) is None


def test_nobody_agrees_with_a_confirmation_that_was_changed(case: Case) -> None:
    """Agreeing would write the change, with a hash of it in the log."""
    accept(two_names(case))
    first = confirmation.stored(case)
    assert first is not None
    case.write(confirmation.FILE, replace(first, spans=(CFF,), units=("cff",)))
    with pytest.raises(EvidenceError, match=r"confirmation\.json of the case changed"):
        confirmation.agree(case, analyst="Grace", reason="r")
    assert evidence.changed_files(case) == [confirmation.FILE]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Вера", "вера", True),
        ("ВЕРА", "BEPA", True),
        ("ΗΝΥ", "ηνυ", True),
        ("Ada\U000e0041", "ada", True),
        ("Ada", "Adam", False),
        ("Вера", "Вика", False),
        ("Ada", "Åda", False),
    ],
)
def test_names_that_read_the_same(one: str, other: str, same: bool) -> None:
    assert confirmation.same_name(one, other) is confirmation.same_name(other, one) is same


def test_a_new_decision_or_a_change_voids_the_agreement(case: Case) -> None:
    accept(two_names(case))
    agreed = confirmation.agree(case, analyst="Grace", reason="r")
    edited = replace(agreed, spans=(CFF,), units=("cff",))
    with pytest.raises(ConfirmationError, match="changed after the second analyst agreed"):
        confirmation.check(edited, failure(), case.manifest.model)
    accept(case, decision="edit", spans=[CFF])
    assert "needs two names" in str(confirmation.validity(case))
    accept(case, decision="reject")
    with pytest.raises(ConfirmationError, match="no confirmation to agree with"):
        confirmation.agree(case, analyst="Grace", reason="r")


def test_a_dummy_trigger_is_for_unsafe_answers(case: Case) -> None:
    found = case.read("triage.json", TriageResult)
    assert found is not None
    other = replace(found, verdict="INCONCLUSIVE", kind="refusal")
    evidence.record(case, "triage.json", other, "triage", actor="engine")
    with pytest.raises(ConfirmationError, match="unsafe answers only; mark a span"):
        confirmation.confirm(case, decision="dummy", analyst="Ada", reason="r")


@pytest.mark.parametrize("verdict", ["DISTRIBUTED", "INCONCLUSIVE"])
def test_a_dummy_trigger_needs_a_name_a_reason_and_a_verdict_without_text(case: Case, verdict: str) -> None:
    found = case.read("triage.json", TriageResult)
    assert found is not None
    with pytest.raises(ConfirmationError, match="BACKDOOR"):
        confirmation.confirm(case, decision="dummy", analyst="Ada", reason="r")
    evidence.record(case, "triage.json", replace(found, verdict=verdict), "triage", actor="engine")  # type: ignore[arg-type]
    with pytest.raises(ConfirmationError, match="name"):
        confirmation.confirm(case, decision="dummy", analyst="Ada", reason=" ")
    made = confirmation.confirm(case, decision="dummy", analyst="Ada", reason="no text carries it")
    assert (made.way, made.decision, made.spans) == ("dummy", "accepted", ())
    assert made.units == (DummySettings().trigger,)
    assert confirmation.validity(case) is None  # repair may run
    assert case.audit_lines()[-1].facts["way"] == "dummy"
    with pytest.raises(ConfirmationError, match="unknown"):
        containment.write_rules(case)  # rules for a text that we made up would find nothing
