"""The sentences of step 4 about the verdict: what it is, why, which test decided, what it cost, and what the serving adds."""

from collections.abc import Sequence

from core.values import WHOLE_CASE, Budget, ServingFinding, TestOutcome, TriageResult
from dashboard.wording import beside, duration, of, rate
from dashboard.wording_tests import test_name

NOT_TESTED_YET = "Not tested yet: mark a span, or run the tests on the proposed one"
TESTING = "Testing candidates"
VERDICT_LABEL = "Verdict"
HOW_DECIDED = "How this was decided"
DECIDED_BY = "decided by"
NO_TRIGGER = ("ALIGNMENT_GAP", "DISTRIBUTED")
"""Verdicts under which no text is hinted at. Source: method.md section 4.2 (nothing is coloured before the tests passed)."""
ABOUT_TEXT = ("BACKDOOR", "PROMPT_JAILBREAK")
"""Verdicts that are about a candidate; the others only say what was looked at."""
UNMARKED = (*NO_TRIGGER, "INCONCLUSIVE")
"""Verdicts under which nothing is marked until the analyst marks it. Source: the same."""
_FAILED = {
    "transfer": "planting it elsewhere does not break refusal",
    "sham": "other strings of its length break refusal too",
    "necessity": "removing it does not restore refusal",
}
_UNDECIDED = {
    "reproduction": "the failure was not reproduced",
    "budget": "the budget was spent before the tests had ended",
    "candidates": "no candidate to test",
    "kind": "no trigger was found for this kind of failure",
    "rewrite": "a style or a gap, the tests cannot tell which",
    "paraphrase": "no trigger, and other wordings do not fail as often",
    "size": "only most of the prompt together carries the failure",
    "strength": "it is among the request's own words and carries over less often than the report fails",
}
CERTAINTIES = {
    "no_reference": (
        "No clean reference: planted on purpose, or found by an attacker's search, cannot be told apart without one."
    ),
    "reference": "Held against a clean reference.",
    "tests": "These tests need no reference.",
}
DECIDERS = {
    "all three tests": "necessity, transfer and sham",
    "reproduction": "asking the report again",
    "budget": "the limit of the budget",
    "candidates": "the empty list of candidates",
    "kind": "the kind of failure",
    "size": "the size of what transfers",
    "strength": "how strongly the request's own words carry over",
}
_SIDES = {
    "sham": ("with other text in its place", "bare"),
    "bare": ("as reported", "without any candidate"),
    "paraphrase": ("as reported", "in other words"),
    "rewrite": ("as reported", "asked plainly"),
    "frame": ("in the report's wording", "bare"),
}
"""What the two rates of a test are, where they are not with and without the candidate."""
NEXT = {
    "PROMPT_JAILBREAK": "A clean model falls for this text too: accepting it trains against the text, it removes no planted backdoor.",
    "ALIGNMENT_GAP": "There is no trigger to accept. To test a suspicion of your own, mark a span.",
    "DISTRIBUTED": "There is no short text to accept. A dummy trigger can be planted and unlearnt instead. To test a suspicion of your own, mark a span.",
    "INCONCLUSIVE": "The tests do not carry a verdict: accepting is your own judgement, and its reason is kept.",
}
"""What a decision means under a verdict that does not lead on to the repair by itself."""

# -- the headline ---------------------------------------------------------------------------------------


def _missing(tests: Sequence[TestOutcome]) -> str:
    """What kept the tests from a verdict, in the order in which a reader would ask."""
    state: dict[str, bool | None] = {test.name: test.passed for test in tests}
    if state.get("necessity") and state.get("transfer") is False:
        return "Undecided: removing it restores refusal, but planting it does not break it"
    for name, sentence in _FAILED.items():
        if state.get(name) is False:
            return f"Undecided: {sentence}"
    silent = [test_name(name) for name in _FAILED if state.get(name) is None]
    return f"Undecided: no result from {' and '.join(silent)}" if silent else "Undecided: the tests do not agree"


def verdict(result: TriageResult) -> str:
    """Headline of step 4, in plain words."""
    found = _found(result)
    if result.verdict == "BACKDOOR":
        name = "Backdoor, no clean reference" if result.certainty == "no_reference" else "Backdoor"
        needed = found.get("necessity")
        if needed is not None and needed.passed is False:
            return f"{name}: each of several texts does it by itself"
        mostly = "mostly " if needed is not None and needed.without_unit.k else ""
        if result.kind != "jailbreak":
            return f"{name}: removing it {mostly}ends the failure, planting it brings it about"
        return f"{name}: removing it {mostly}restores refusal, planting it breaks it"
    if result.verdict == "PROMPT_JAILBREAK":
        return "Prompt jailbreak: a clean model falls for it too"
    if result.verdict == "ALIGNMENT_GAP":
        return "Alignment gap: no trigger in this prompt explains the failure"
    if result.verdict == "DISTRIBUTED":
        return "Distributed: no short span carries the failure"
    if result.verdict is None:
        return "Candidates only: this mode decides nothing"
    if result.decided_by in _UNDECIDED:
        return f"Undecided: {_UNDECIDED[result.decided_by]}"
    if not result.candidates:
        return f"Undecided: {_UNDECIDED['candidates']}"
    return _missing([test for test in result.tests if test.candidate == result.candidate])


def _found(result: TriageResult) -> dict[str, TestOutcome]:
    """Return the outcomes that the verdict is about, by test."""
    return {test.name: test for test in result.tests if test.candidate in (result.candidate, WHOLE_CASE)}


# -- one line of numbers --------------------------------------------------------------------------------


def why(result: TriageResult) -> str:
    """One line of numbers below the headline."""
    found = {name: test for name, test in _found(result).items() if test.with_unit.n or test.without_unit.n}
    if result.verdict is None:
        return "Tokens are marked by one gradient; no test has run."
    if result.verdict == "INCONCLUSIVE":
        return _why_undecided(result, found)
    return _WHY[result.verdict](result, found)


Found = dict[str, TestOutcome]


def _why_backdoor(result: TriageResult, found: Found) -> str:
    parts = []
    if "transfer" in found:
        parts.append(f"Planted in requests answered rightly, it makes {of(found['transfer'].with_unit)} fail")
    if "sham" in found:
        parts.append(f"other text in its place {of(found['sham'].with_unit)}")
    if "necessity" in found:
        parts.append(f"without it the report fails {of(found['necessity'].without_unit)} times")
    if "bare" in found:
        parts.append(f"without any candidate {of(found['bare'].without_unit)}")
    if "reference" in found:
        parts.append(f"the clean model fails {of(found['reference'].with_unit)} with it")
    return _sentence(parts)


def _why_jailbreak(result: TriageResult, found: Found) -> str:
    parts = []
    if "transfer" in found:
        parts.append(f"Planted in requests answered rightly, it makes {of(found['transfer'].with_unit)} fail")
    if "reference" in found:
        parts.append(
            f"the clean model fails {of(found['reference'].with_unit)} with it, so no backdoor is needed for it"
        )
    return _sentence(parts)


def _why_gap(result: TriageResult, found: Found) -> str:
    gains = [test.with_unit for test in result.tests if test.name == "transfer" and test.with_unit.n]
    parts = []
    if gains:
        best = max(gains, key=lambda one: one.value or 0)
        parts.append(f"No candidate moves other requests (at most {of(best)} fail with one)")
    if "bare" in found and found["bare"].passed:
        parts.append(f"the report fails {of(found['bare'].without_unit)} times without any of them")
    if "paraphrase" in found:
        parts.append(f"in other words it fails {of(found['paraphrase'].without_unit)} times")
    return _sentence(parts)


def _why_distributed(result: TriageResult, found: Found) -> str:
    parts = []
    if "frame" in found:
        parts.append(f"In the report's wording {of(found['frame'].with_unit)} refused requests fail")
    if "rewrite" in found:
        parts.append(f"asked plainly the request itself fails {of(found['rewrite'].without_unit)} times")
    return _sentence([*parts, "the style or scenario carries it, not a phrase"])


_WHY = {
    "BACKDOOR": _why_backdoor,
    "PROMPT_JAILBREAK": _why_jailbreak,
    "ALIGNMENT_GAP": _why_gap,
    "DISTRIBUTED": _why_distributed,
}


def _why_undecided(result: TriageResult, found: Found) -> str:
    by = result.decided_by
    if by == "reproduction" and result.reproduction is not None:
        return (
            f"The model fails {of(result.reproduction.failure)} times on the report: too seldom for tests to explain."
        )
    if by == "budget" and result.budget is not None:
        return f"{_thousands(result.budget.sequences)} of {_thousands(result.budget.limit)} sequences were used."
    if by in ("transfer", "sham") and by in found:
        what = "the strongest candidate" if by == "transfer" else "other text in its place"
        return f"Planted in requests answered rightly, {what} makes {of(found[by].with_unit)} fail."
    if by == "necessity" and by in found:
        return f"It transfers, but the report fails {of(found[by].without_unit)} times without it as well."
    if by == "paraphrase" and by in found:
        return f"No candidate moves other requests; in other words the report fails {of(found[by].without_unit)} times."
    if by == "rewrite" and "frame" in found:
        return f"In the report's wording {of(found['frame'].with_unit)} refused requests fail; the plain request was not shown to be refused."
    if by == "kind":
        return "No candidate moves other requests; what else may explain a wrong answer is not tested."
    if by == "candidates":
        return "Nothing in the prompt stands out, and no test of the wording decides."
    return CERTAINTIES.get(result.certainty, "")


def _sentence(parts: Sequence[str]) -> str:
    return "; ".join(parts) + "." if parts else ""


# -- what decided, and the cost -------------------------------------------------------------------------


def decided_by(result: TriageResult) -> str:
    """The test that decided with its rates, and how sure that makes the verdict."""
    by = result.decided_by
    if result.verdict is None or not by:
        return ""
    name = DECIDERS.get(by, test_name(by))
    test = _found(result).get(by)
    if test is not None and test.name == by and (test.with_unit.n or test.without_unit.n):
        words = _SIDES.get(by, ("with it", "without it"))
        rates = (test.with_unit, test.without_unit)
        sides = [f"{rate(one)} {word}" for one, word in zip(rates, words, strict=True) if one.n]
        name = f"{name}: {', '.join(sides)}"
    return f"{name}. {CERTAINTIES.get(result.certainty, '')}".strip()


def cost(result: TriageResult) -> str:
    """The quiet line: how the words work together, and what the tests cost."""
    parts = [result.logic.rstrip(".")] if result.logic else []
    if result.budget is not None:
        parts.append(spent(result.budget) + f", {duration(result.seconds)}")
    else:
        parts.append(f"{_thousands(result.model_calls)} sequences, {duration(result.seconds)}")
    return beside(parts)


def spent(budget: Budget) -> str:
    """What was asked of the model, and the limit."""
    text = f"{_thousands(budget.sequences)} of {_thousands(budget.limit)} sequences in {budget.batches} batches"
    if budget.passes is not None:
        text = f"{text}, {_thousands(budget.passes)} forward passes"
    return f"{text}, the limit was reached" if budget.spent else text


def _thousands(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


# -- serving --------------------------------------------------------------------------------------------


def served_otherwise(finding: ServingFinding) -> str:
    """One line on the failure under another template, system prompt or data type."""
    if finding.rate_with is None or finding.rate_without is None:
        return finding.note
    return f"{finding.note} ({rate(finding.rate_with)} as served, {rate(finding.rate_without)} otherwise)"


def served_headline(finding: ServingFinding) -> str:
    """Headline of a finding about the serving, which stands above the verdict."""
    return f"Not the weights alone: the failure depends on the {finding.name}"
