"""The sentences of step 4 about what the analyst does: spans marked and tried, the decision, containment rules."""

from collections.abc import Sequence

from core.report_text import DESCRIBED
from core.values import MinimisedSpan, SecondReview, TestOutcome, TriggerConfirmation
from dashboard.wording import beside, rate
from dashboard.wording_tests import test_name

# -- the analyst's own spans ----------------------------------------------------------------------------
TEST_SPAN = "Test this span"
TESTING_SPAN = "Testing …"
MINIMISE_SPAN = "Minimise span"
MINIMISING_SPAN = "Minimising …"
STOP = "Stop"
MARK_SMALLEST = "Mark it"
MARKED = "Marked"
NOTHING_MARKED = "Nothing is marked."
EDITED = "edited"
AS_PROPOSED = "as proposed"


def tested(text: str, tests: Sequence[TestOutcome]) -> str:
    """Headline of a span that the analyst had tested."""
    decisive = [test for test in tests if test.passed is not None]
    n_passed = sum(bool(test.passed) for test in decisive)
    return f"“{text}”: {n_passed} of {len(decisive)} tests passed"


def tested_line(tests: Sequence[TestOutcome]) -> str:
    """The rates of the tests of a span, each with n and interval."""
    shown = [test for test in tests if test.name not in DESCRIBED and test.with_unit.n]
    parts = [
        f"{test_name(test.name)} {rate(test.without_unit if test.name == 'necessity' else test.with_unit)}"
        f"{' without it' if test.name == 'necessity' else ''}"
        for test in shown
    ]
    return beside(parts)


def minimised(result: MinimisedSpan) -> str:
    """Headline of a span that the analyst had minimised."""
    if result.smallest is None:
        return f"“{result.marked.text}” is not cut down"
    if result.smallest.spans == result.marked.spans:
        return f"“{result.marked.text}”: no part of it can go"
    return f"“{result.smallest.text}” is enough"


def minimised_line(result: MinimisedSpan) -> str:
    """How many other requests fail with the smallest part and with the whole span, or why nothing was cut."""
    parts = []
    if result.smallest is not None and result.rate is not None:
        parts.append(f"{rate(result.rate)} of other requests fail with it")
        if result.whole is not None and result.smallest.spans != result.marked.spans:
            parts.append(f"{rate(result.whole)} with the whole span")
        parts.append("the search chose by these requests: test it on others")
    else:
        parts.append(result.why.rstrip("."))
    return beside(parts)


# -- the decision ---------------------------------------------------------------------------------------
ANALYST = "Analyst"
REASON = "Reason"
ACCEPT = "Accept"
EDIT = "Accept as edited"
REJECT = "Reject"
DUMMY = "Repair without a text"
AGREE = "Agree as second"
UNDECIDED = "No decision yet"


def confirmed(result: TriggerConfirmation) -> str:
    """What was confirmed, by whom."""
    word = {"accepted": "Accepted", "edited": "Accepted with edits", "rejected": "Rejected"}[result.decision]
    word = "A dummy trigger, planted and unlearnt, accepted" if result.way == "dummy" else word
    return f"{word} by {result.analyst}, {result.time[:10]} {result.time[11:16]} UTC"


def agreed(second: SecondReview) -> str:
    """Who agreed, when, why."""
    return f"agreed: {second.analyst}, {second.time[:10]} {second.time[11:16]} UTC, {second.reason}"


# -- containment ----------------------------------------------------------------------------------------
CONTAIN = "Write containment rules"
RULE_FILE = "Rule file"
SCAN_COLUMNS = [
    {"key": "line", "label": "line", "kind": "number"},
    {"key": "rule", "label": "rule", "kind": "text"},
    {"key": "outcome", "label": "answer", "kind": "text"},
    {"key": "excerpt", "label": "excerpt", "kind": "mono"},
]
NO_HITS = "No rule matches in this file."


def contained(n_rules: int, n_variants: int, missed: Sequence[str]) -> str:
    """What the rule file holds, and which variants it misses."""
    text = f"{n_rules} rules, tried on {n_variants} variants of the trigger"
    return f"{text}; none matches: {', '.join(missed)}" if missed else f"{text}, all matched"


def scanned(file: str, headline: str, notes: Sequence[str]) -> str:
    """Caption of the last scan."""
    return " ".join([f"{file}: {headline}", *notes])
