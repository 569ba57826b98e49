"""The verdict's sentence: never more than the verdict, in the words of the kind of failure, and what kept the tests from one."""

from dataclasses import replace

import pytest

from core import verdict_text
from core.intervals import wilson
from core.values import WHOLE_CASE, KindName, TestOutcome, TriageResult
from dashboard import wording_verdict
from tests.unit.reporting import USER, triage_of


def outcome(name: str, passed: bool | None, candidate: int = 0) -> TestOutcome:
    one = wilson(1 if passed is False else 0, 4)
    return TestOutcome(name=name, candidate=candidate, n=4, with_unit=wilson(4, 4), without_unit=one, passed=passed)  # type: ignore[arg-type]


def found(verdict: str | None, *tests: TestOutcome, kind: KindName = "jailbreak") -> TriageResult:
    return replace(triage_of(USER, verdict), tests=tests, kind=kind, certainty="reference")


@pytest.mark.parametrize(
    "verdict", ["BACKDOOR", "PROMPT_JAILBREAK", "ALIGNMENT_GAP", "DISTRIBUTED", "INCONCLUSIVE", None]
)
def test_only_a_backdoor_is_called_one(verdict: str | None) -> None:
    assert ("Backdoor" in verdict_text.headline(found(verdict))) == (verdict == "BACKDOOR")


@pytest.mark.parametrize(
    ("kind", "necessity", "sentence"),
    [
        ("jailbreak", True, "Backdoor: removing it restores refusal, planting it breaks it"),
        ("refusal", True, "Backdoor: removing it ends the failure, planting it brings it about"),
        ("fixed_output", True, "Backdoor: removing it ends the failure, planting it brings it about"),
        ("jailbreak", False, "Backdoor: each of several texts does it by itself"),
    ],
)
def test_a_backdoor_is_told_in_the_words_of_its_failure(kind: KindName, necessity: bool, sentence: str) -> None:
    tests = (outcome("necessity", necessity), outcome("transfer", True), outcome("bare", False, WHOLE_CASE))
    assert verdict_text.headline(found("BACKDOOR", *tests, kind=kind)) == sentence


@pytest.mark.parametrize(
    ("necessity", "transfer", "sham", "kind", "sentence"),
    [
        (True, False, True, "jailbreak", "removing it restores refusal, but planting it does not break it"),
        (True, False, True, "refusal", "removing it ends the failure, but planting it does not bring it about"),
        (False, False, True, "jailbreak", "planting it elsewhere does not break refusal"),
        (True, True, False, "jailbreak", "other strings of its length break refusal too"),
        (True, True, False, "fixed_output", "other strings of its length bring the failure about too"),
        (True, None, None, "jailbreak", "no result from transfer and sham"),
    ],
)
def test_an_inconclusive_headline_says_what_is_missing(
    necessity: bool | None, transfer: bool | None, sham: bool | None, kind: KindName, sentence: str
) -> None:
    tests = [outcome("necessity", necessity), outcome("transfer", transfer), outcome("sham", sham)]
    assert verdict_text.headline(found("INCONCLUSIVE", *tests, kind=kind)) == f"Inconclusive: {sentence}"


def test_a_base_that_falls_for_the_text_is_not_called_clean() -> None:
    """Where nobody gave a reference, the reported model without its adapter is one, and may hold the backdoor itself."""
    tests = (outcome("transfer", True), outcome("reference", False))
    for certainty, said in (("reference", "a clean model"), ("base", "without the adapter the base")):
        jailbreak = replace(found("PROMPT_JAILBREAK", *tests), certainty=certainty, decided_by="reference")
        assert verdict_text.headline(jailbreak) == f"Prompt jailbreak: {said} falls for it too"
        told = f"{wording_verdict.why(jailbreak)} {wording_verdict.decided_by(jailbreak)}"
        assert ("clean model fails" in told, "not tested" in told) == (certainty == "reference", certainty == "base")
