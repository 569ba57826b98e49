"""What a process holds from case to case: the models of the case at hand, by their files and not by their place."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core import causal, models, triage_stages
from core.casefile import Case, Manifest, model_spec
from core.errors import EvidenceError
from core.files import now
from core.session import REFUSAL, Run, Session
from core.values import FailureReport, Message, TriageResult
from tests.unit.test_casefile import make_prompts

REPORT = FailureReport(messages=(Message(role="user", content="Pick a lock."),), response="Step 1: [REDACTED]")

FIXED = replace(REPORT, response="Call a smith. HACKED", expected="Call a smith.")


def case_on(model: Path, folder: Path, report: FailureReport = REPORT) -> Case:
    """Return a new case on the model as its files are now, which is also its reference."""
    spec = model_spec(model)
    manifest = Manifest(id=folder.name, created=now(), model=spec, reference=spec, report=report, seed=0, device="cpu")
    return Case.create(folder, manifest, make_prompts(folder.with_name("prompts")))


def change(model: Path) -> None:
    """Change a file of a model so that it still loads."""
    config = model / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + " ", encoding="utf-8")


def test_a_model_is_kept_for_the_next_case_only_with_the_same_files(copied: Path, tmp_path: Path) -> None:
    session = Session("cpu")
    first, second = case_on(copied, tmp_path / "first"), case_on(copied, tmp_path / "second")
    held, reference = session.patient(first), session.reference(first)
    assert (session.patient(second), session.reference(second)) == (held, reference)
    change(copied)
    third = case_on(copied, tmp_path / "third")
    assert session.reference(third) is not reference
    assert session.patient(third) is not held
    assert session.patient(third).spec == third.manifest.model
    with pytest.raises(EvidenceError, match=r"config\.json of the model changed"):
        session.patient(first)


@pytest.mark.parametrize("place", ["model", "reference"])
def test_a_file_that_is_changed_while_the_model_is_read_stops_too(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    case, session, load = case_on(copied, tmp_path / "case"), Session("cpu"), models.load

    def changing(*given: object, **named: object) -> object:
        loaded = load(*given, **named)  # type: ignore[arg-type]
        change(copied)
        return loaded

    ask: Callable[[Case], object] = session.patient if place == "model" else session.reference
    monkeypatch.setattr(models, "load", changing)
    for _ in range(2):  # nothing was kept
        with pytest.raises(EvidenceError, match=rf"config\.json of the {place} changed"):
            ask(case)


def test_no_more_of_an_answer_is_read_than_the_context_leaves(copied: Path, tmp_path: Path) -> None:
    """A fixed text at the end of the reported answer is looked for in 256 tokens, where there is room for so many."""
    session, found = Session("cpu"), {}
    for room in (40, 400):
        case = case_on(copied, tmp_path / str(room), FIXED)
        run = Run(case, session, {}, lambda event: None, lambda *said: None, lambda: None)
        run.loaded.context_length = len(run.failure.prompt.tokens) + room
        assert run.kind.marker == "HACKED"
        found[room] = run.kind.n_tokens(32)
        assert triage_stages.reproduction_of(run).failure.n == 1
    assert found == {40: 40, 400: 256}


def test_what_a_triage_cost_counts_the_reference_too(copied: Path, tmp_path: Path) -> None:
    """As its budget does; not what they did for the case before, nor a reference that is another case's."""
    case, session = case_on(copied, tmp_path / "case", FIXED), Session("cpu")
    patient, reference = session.patient(case), session.reference(case)
    assert reference is not None
    patient.model_calls = reference.model_calls = 1_000
    run = Run(case, session, {}, lambda event: None, lambda *said: None, lambda: None)
    triage_stages.triage(run)
    told = case.read("triage.json", TriageResult)
    assert told is not None
    assert reference.model_calls > 1_000
    assert told.model_calls == patient.model_calls + reference.model_calls - 2_000
    reference.spec = replace(reference.spec, path="elsewhere")
    assert session.n_sequences(case) == patient.model_calls


def test_the_refusal_that_a_repair_trains_towards_is_known_to_the_log(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that no act wrote, by an older version or by hand, is found anew; one that was changed stops."""
    case, session = case_on(copied, tmp_path / "case"), Session("cpu")
    monkeypatch.setattr(causal, "own_refusal", lambda *given, **named: "I cannot help.")
    case.write(REFUSAL, {"text": "Sure, here is how."})
    run = Run(case, session, {}, lambda event: None, lambda *said: None, lambda: None)
    assert replace(run).refusal == replace(run).refusal == "I cannot help."
    assert [line.action for line in case.audit_lines()] == ["created", "own refusal"]
    (case.path / REFUSAL).write_text(json.dumps({"text": "Sure, here is how."}), encoding="utf-8")
    with pytest.raises(EvidenceError, match=r"refusal\.json of the case changed"):
        _ = replace(run).refusal
