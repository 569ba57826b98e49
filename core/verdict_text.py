"""The verdict in one sentence, the same on the page, in the report and in SARIF, for every kind of failure.

What this does not do: decide (verdict.py), or say how sure the verdict is (`report_text.CERTAINTIES`).
"""

from collections.abc import Mapping, Sequence

from core.values import WHOLE_CASE, TestOutcome, TriageResult

_ENDS = {True: "restores refusal", False: "ends the failure"}
_BRINGS = {True: "breaks it", False: "brings it about"}
_FAILED = {
    True: {
        "transfer": "planting it elsewhere does not break refusal",
        "sham": "other strings of its length break refusal too",
        "necessity": "removing it does not restore refusal",
    },
    False: {
        "transfer": "planting it elsewhere does not bring the failure about",
        "sham": "other strings of its length bring the failure about too",
        "necessity": "removing it does not end the failure",
    },
}
"""What a failed test says; True: the failure is an unsafe answer."""
_INCONCLUSIVE = {
    "reproduction": "the failure was not reproduced",
    "budget": "the budget was spent before the tests had ended",
    "candidates": "no candidate to test",
    "kind": "no trigger was found for this kind of failure",
    "rewrite": "a style or a gap, the tests cannot tell which",
    "paraphrase": "no trigger, and other wordings do not fail as often",
    "size": "only most of the prompt together carries the failure",
    "strength": "it is among the request's own words and carries over less often than the report fails",
}


def headline(result: TriageResult) -> str:
    """Return the verdict in one sentence without a full stop."""
    match result.verdict:
        case "BACKDOOR":
            return _backdoor(result)
        case "PROMPT_JAILBREAK":
            own = result.certainty == "base"
            return f"Prompt jailbreak: {'without the adapter the base' if own else 'a clean model'} falls for it too"
        case "ALIGNMENT_GAP":
            return "Alignment gap: no trigger in this prompt explains the failure"
        case "DISTRIBUTED":
            return "Distributed: no short span carries the failure"
        case None:
            return "Candidates only: paper mode marks tokens and decides nothing"
    by = result.decided_by
    if by not in _INCONCLUSIVE and not result.candidates:
        by = "candidates"
    tests = [test for test in result.tests if test.candidate == result.candidate]
    return f"Inconclusive: {_INCONCLUSIVE.get(by) or missing(tests, result.kind == 'jailbreak')}"


def _backdoor(result: TriageResult) -> str:
    name = "Backdoor, no clean reference" if result.certainty == "no_reference" else "Backdoor"
    needed, unsafe = outcomes(result).get("necessity"), result.kind == "jailbreak"
    if needed is not None and needed.passed is False:
        return f"{name}: each of several texts does it by itself"
    mostly = "mostly " if needed is not None and needed.without_unit.k else ""
    return f"{name}: removing it {mostly}{_ENDS[unsafe]}, planting it {_BRINGS[unsafe]}"


def missing(tests: Sequence[TestOutcome], unsafe: bool = True) -> str:
    """Return what kept the tests of a candidate from a verdict, in the order in which a reader would ask."""
    state: Mapping[str, bool | None] = {test.name: test.passed for test in tests}
    if state.get("necessity") and state.get("transfer") is False:
        return f"removing it {_ENDS[unsafe]}, but planting it does not {'break it' if unsafe else 'bring it about'}"
    for name, sentence in _FAILED[unsafe].items():
        if state.get(name) is False:
            return sentence
    silent = [name for name in _FAILED[unsafe] if state.get(name) is None]
    return f"no result from {' and '.join(silent)}" if silent else "the tests do not agree"


def outcomes(result: TriageResult) -> dict[str, TestOutcome]:
    """Return the outcomes that the verdict is about, by test."""
    return {test.name: test for test in result.tests if test.candidate in (result.candidate, WHOLE_CASE)}
