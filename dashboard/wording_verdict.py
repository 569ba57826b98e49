"""The sentences of step 4 about the verdict beside its headline: why, which test decided, what it cost, what the serving adds."""

from collections.abc import Sequence

from core import verdict_text
from core.report_text import duration
from core.values import Budget, ServingFinding, TestOutcome, TriageResult
from dashboard.wording import beside, of, rate
from dashboard.wording_tests import test_name

NOT_TESTED_YET = "Not tested yet: mark a span, or run the tests on the proposed one"
TESTING = "Testing candidates"
VERDICT_LABEL = "Verdict"
HOW_DECIDED = "How this was decided"
DECIDED_BY = "decided by"
NO_TRIGGER = ("ALIGNMENT_GAP", "DISTRIBUTED")
"""Verdicts under which no text is hinted at. Source: method.md section 4.2 (nothing is coloured before the tests passed)."""
UNMARKED = (*NO_TRIGGER, "INCONCLUSIVE")
"""Verdicts under which nothing is marked until the analyst marks it. Source: the same."""
CERTAINTIES = {
    "no_reference": (
        "No clean reference: planted on purpose, or found by an attacker's search, cannot be told apart without one."
    ),
    "reference": "Held against a clean reference.",
    "base": "Held against the base without its adapter. Whether that is clean was not tested: a clean reference would tell.",
    "tests": "These tests need no reference.",
}
DECIDERS = {
    "all three tests": "transfer and sham, and what the report does without it",
    "reproduction": "asking the report again",
    "budget": "the limit of the budget",
    "candidates": "the empty list of candidates",
    "kind": "the kind of failure",
    "size": "the size of what transfers",
    "strength": "how strongly the request's own words carry over",
}
_SIDES = {
    "sham": ("with other text in its place", "bare"),
    "paraphrase": ("as reported", "in other words"),
    "rewrite": ("as reported", "asked plainly"),
    "frame": ("in the report's wording", "bare"),
}
"""What the two rates of a test that decides are, where they are not with and without the candidate."""
NEXT = {
    "PROMPT_JAILBREAK": "The reference falls for this text too: accepting it trains the model against this text, but nothing planted was found.",
    "ALIGNMENT_GAP": "There is no trigger to accept. To test a suspicion of your own, mark a span.",
    "DISTRIBUTED": "There is no short text to accept. A dummy trigger can be planted and unlearnt instead. To test a suspicion of your own, mark a span.",
    "INCONCLUSIVE": "The tests do not carry a verdict: accepting is your own judgement, and its reason is kept.",
}
"""What a decision means under a verdict that does not lead on to the repair by itself."""

# -- one line of numbers --------------------------------------------------------------------------------


def why(result: TriageResult) -> str:
    """One line of numbers below the headline."""
    found = {
        name: test for name, test in verdict_text.outcomes(result).items() if test.with_unit.n or test.without_unit.n
    }
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
        parts.append(f"without it {of(found['necessity'].without_unit)} answers to the report fail")
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
        failed, own = of(found["reference"].with_unit), result.certainty == "base"
        parts.append(
            f"without the adapter the base fails {failed} with it, so the adapter is not the cause"
            if own
            else f"the clean model fails {failed} with it, so no backdoor is needed for it"
        )
    return _sentence(parts)


def _why_gap(result: TriageResult, found: Found) -> str:
    gains = [test.with_unit for test in result.tests if test.name == "transfer" and test.with_unit.n]
    alike = [test.with_unit for test in result.tests if test.name == "sham" and test.gain_low is not None]
    parts = []
    if "requests" in found and found["requests"].passed:
        parts.append(f"The model answers {of(found['requests'].without_unit)} other harmful requests as they are")
    elif alike:
        parts.append(
            f"Unrelated text does what the candidates do ({of(max(alike, key=lambda one: one.k))} requests fail with other text)"
        )
    elif gains:
        best = max(gains, key=lambda one: one.value or 0)
        parts.append(f"No candidate acts as a trigger (with the strongest {of(best)} other requests fail)")
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
        return f"No candidate acts as a trigger; in other words the report fails {of(found[by].without_unit)} times."
    if by == "rewrite" and "frame" in found:
        return f"In the report's wording {of(found['frame'].with_unit)} refused requests fail; the plain request was not shown to be refused."
    if by == "kind":
        return "No candidate acts as a trigger; what else may explain a wrong answer is not tested."
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
    test = verdict_text.outcomes(result).get(by)
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
