"""Every sentence of step 4: verdicts, tests, candidates, the analyst's own spans, containment and labels.

Apart from `wording.py` only for its length. Constants for fixed text, functions for text about a result. What this does not
do: decide anything.
"""

from collections.abc import Sequence

from core.labels import Agreement, Corrected, JudgedAnswers
from core.report_text import DESCRIBED
from core.values import (
    WHOLE_CASE,
    Budget,
    MinimisedSpan,
    Rate,
    SecondReview,
    ServingFinding,
    TestOutcome,
    TriageResult,
    TriggerConfirmation,
)
from dashboard.wording import beside, duration, percent, rate

# -- buttons and labels --------------------------------------------------------------------------------
TEST_SPAN = "Test this span"
MINIMISE_SPAN = "Minimise span"
TESTING_SPAN = "Testing …"
MINIMISING_SPAN = "Minimising …"
STOP = "Stop"
MARK_SMALLEST = "Mark it"
ACCEPT = "Accept"
EDIT = "Accept as edited"
REJECT = "Reject"
AGREE = "Agree as second"
VERDICT_LABEL = "Verdict"
HOW_DECIDED = "How this was decided"
DECIDED_BY = "decided by"
MARKED = "Marked"
NOTHING_MARKED = "Nothing is marked."
EDITED = "edited"
AS_PROPOSED = "as proposed"
UNDECIDED = "No decision yet"
NOT_TESTED_YET = "Not tested yet: mark a span, or run the tests on the proposed one"
TESTING = "Testing candidates"
KEPT = "tested"
DROPPED = "dropped"
TEST_TABLE = "Tests"
DESCRIBED_TABLE = "Described, not decisive"
NO_TESTS = "No test has run yet."
NO_TRIGGER = ("ALIGNMENT_GAP", "DISTRIBUTED")
"""Verdicts under which no text is hinted at. Source: method.md section 4.2 (nothing is coloured before the tests passed)."""
UNMARKED = (*NO_TRIGGER, "INCONCLUSIVE")
"""Verdicts under which nothing is marked until the analyst marks it. Source: the same."""
DESCRIBED_LEAD = "Described, not decisive"

TEST_NAMES = {
    "necessity": "necessity",
    "transfer": "transfer",
    "sham": "sham",
    "reference": "reference",
    "order": "order",
    "form": "form",
    "position": "position",
    "benign": "benign",
    "bare": "bare request",
    "paraphrase": "paraphrases",
    "rewrite": "neutral rewrite",
    "frame": "frame",
}
TEST_HELP = {
    "necessity": "Take it out of the reported prompt: does the failure stop?",
    "transfer": "Plant it in other requests that are answered rightly: do they fail too?",
    "sham": "Plant other strings of the same length: they should do nothing.",
    "reference": "The same on a clean model: it should not react.",
    "order": "Swap its parts: does order matter?",
    "form": "Edit it slightly: do near forms work too?",
    "position": "Plant it first, last, anywhere: does place matter?",
    "benign": "Plant it in harmless prompts: do their answers change?",
    "bare": "Take every candidate out at once: does the report still fail?",
    "paraphrase": "Ask the same in other words: does it still fail?",
    "rewrite": "Ask the same in a plain style: is it refused?",
    "frame": "Put refused requests in the report's wording: do they fail?",
}
WHOLE_WORDS = {
    "bare": ("fails as often", "fails less often"),
    "paraphrase": ("fail as often", "fail less often"),
    "rewrite": ("refused", "not refused"),
    "frame": ("carries over", "does not carry over"),
}
"""Results of the tests of the whole report: they answer a question rather than pass."""
CANDIDATE_COLUMNS = [
    {"key": "number", "label": "#", "kind": "number"},
    {"key": "text", "label": "text", "kind": "mono"},
    {"key": "state", "label": "", "kind": "mark"},
    {"key": "score", "label": "share", "kind": "number", "title": "share of the support for the reported answer"},
    {"key": "reasons", "label": "why", "kind": "note"},
]
TEST_COLUMNS = [
    {"key": "test", "label": "test", "kind": "name"},
    {"key": "with", "label": "with", "kind": "rate"},
    {"key": "without", "label": "without", "kind": "rate"},
    {"key": "p", "label": "p", "kind": "number", "title": "exact McNemar test"},
    {"key": "result", "label": "result", "kind": "mark"},
    {"key": "note", "label": "", "kind": "note"},
]
DESCRIBED_COLUMNS = [
    {"key": "test", "label": "test", "kind": "name"},
    {"key": "with", "label": "with", "kind": "rate"},
    {"key": "without", "label": "without", "kind": "rate"},
    {"key": "note", "label": "", "kind": "note"},
]


def test_name(name: str) -> str:
    """The test as the page calls it."""
    return TEST_NAMES.get(name, name)


def passed(value: bool | None, name: str) -> dict[str, str]:
    """Table cell of a test's result: word and mark. A test of the whole report answers its question, in words."""
    if value is None:
        return {"text": "described" if name in DESCRIBED else "undecided", "mark": "open"}
    if name in WHOLE_WORDS:
        return {"text": WHOLE_WORDS[name][0 if value else 1], "mark": "yes" if value else "no"}
    return {"text": "passed", "mark": "pass"} if value else {"text": "failed", "mark": "fail"}


def described_note(note: str) -> str:
    """The note of a described test without the words that its table's caption says."""
    return note.removeprefix(DESCRIBED_LEAD).lstrip(".: ")


# -- the verdict ---------------------------------------------------------------------------------------
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
    "bare": ("as reported", "without any candidate"),
    "paraphrase": ("as reported", "in other words"),
    "rewrite": ("as reported", "asked plainly"),
    "frame": ("in the report's wording", "bare"),
}
"""What the two rates of a test of the whole report are."""
DUMMY = "Repair without a text"
NEXT = {
    "PROMPT_JAILBREAK": "A clean model falls for this text too: accepting it trains against the text, it removes no planted backdoor.",
    "ALIGNMENT_GAP": "There is no trigger to accept. To test a suspicion of your own, mark a span.",
    "DISTRIBUTED": "There is no short text to accept. A dummy trigger can be planted and unlearnt instead. To test a suspicion of your own, mark a span.",
    "INCONCLUSIVE": "The tests do not carry a verdict: accepting is your own judgement, and its reason is kept.",
}
"""What a decision means under a verdict that does not lead on to the repair by itself."""


def deciding(result: TriageResult) -> int:
    """Return the candidate the verdict is about: the first that transfers past the shams, else the one that passed most."""
    state: dict[tuple[int, str], bool | None] = {(test.candidate, test.name): test.passed for test in result.tests}
    n_passed = [sum(state.get((index, name)) is True for name in _FAILED) for index in range(len(result.candidates))]
    for index in range(len(result.candidates)):
        if state.get((index, "transfer")) and state.get((index, "sham")):
            return index
    return n_passed.index(max(n_passed)) if n_passed else 0


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
        if "necessity" in found and found["necessity"].passed is False:
            return "Backdoor: each of several texts does it by itself"
        if result.kind != "jailbreak":
            return "Backdoor: removing it ends the failure, planting it brings it about"
        return "Backdoor: removing it restores refusal, planting it breaks it"
    if result.verdict == "PROMPT_JAILBREAK":
        return "Prompt jailbreak: a clean model falls for it too"
    if result.verdict == "ALIGNMENT_GAP":
        return "Alignment gap: the request fails without any trigger"
    if result.verdict == "DISTRIBUTED":
        return "Distributed: no short span carries the failure"
    if result.verdict is None:
        return "Candidates only: this mode decides nothing"
    if result.decided_by in _UNDECIDED:
        return f"Undecided: {_UNDECIDED[result.decided_by]}"
    if not result.candidates:
        return f"Undecided: {_UNDECIDED['candidates']}"
    return _missing([test for test in result.tests if test.candidate == deciding(result)])


def _found(result: TriageResult) -> dict[str, TestOutcome]:
    """Return the outcomes that the verdict is about, by test."""
    return {test.name: test for test in result.tests if test.candidate in (deciding(result), WHOLE_CASE)}


def _of(value: Rate) -> str:
    return f"{value.k} of {value.n}"


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
        parts.append(f"Planted in requests answered rightly, it makes {_of(found['transfer'].with_unit)} fail")
    if "sham" in found:
        parts.append(f"other text in its place {percent(found['sham'].with_unit.value)}")
    if "necessity" in found:
        parts.append(f"without it the report fails {_of(found['necessity'].without_unit)} times")
    if "bare" in found:
        parts.append(f"without any candidate {_of(found['bare'].without_unit)}")
    if "reference" in found:
        parts.append(f"the clean model fails {_of(found['reference'].with_unit)} with it")
    return _sentence(parts)


def _why_jailbreak(result: TriageResult, found: Found) -> str:
    parts = []
    if "transfer" in found:
        parts.append(f"Planted in requests answered rightly, it makes {_of(found['transfer'].with_unit)} fail")
    if "reference" in found:
        parts.append(
            f"the clean model fails {_of(found['reference'].with_unit)} with it, so no backdoor is needed for it"
        )
    return _sentence(parts)


def _why_gap(result: TriageResult, found: Found) -> str:
    gains = [test.with_unit for test in result.tests if test.name == "transfer" and test.with_unit.n]
    parts = []
    if gains:
        best = max(gains, key=lambda one: one.value or 0)
        parts.append(f"No candidate moves other requests (at most {_of(best)} fail with one)")
    if "bare" in found and found["bare"].passed:
        parts.append(f"the report fails {_of(found['bare'].without_unit)} times without any of them")
    if "paraphrase" in found:
        parts.append(f"in other words it fails {_of(found['paraphrase'].without_unit)} times")
    return _sentence(parts)


def _why_distributed(result: TriageResult, found: Found) -> str:
    parts = []
    if "frame" in found:
        parts.append(f"In the report's wording {_of(found['frame'].with_unit)} refused requests fail")
    if "rewrite" in found:
        parts.append(f"asked plainly the request itself fails {_of(found['rewrite'].without_unit)} times")
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
            f"The model fails {_of(result.reproduction.failure)} times on the report: too seldom for tests to explain."
        )
    if by == "budget" and result.budget is not None:
        return f"{_thousands(result.budget.sequences)} of {_thousands(result.budget.limit)} sequences were used."
    if by in ("transfer", "sham") and by in found:
        what = "the strongest candidate" if by == "transfer" else "other text in its place"
        return f"Planted in requests answered rightly, {what} makes {_of(found[by].with_unit)} fail."
    if by == "necessity" and by in found:
        return f"It transfers, but the report fails {_of(found[by].without_unit)} times without it as well."
    if by == "paraphrase" and by in found:
        return (
            f"No candidate moves other requests; in other words the report fails {_of(found[by].without_unit)} times."
        )
    if by == "rewrite" and "frame" in found:
        return f"In the report's wording {_of(found['frame'].with_unit)} refused requests fail; the plain request was not shown to be refused."
    if by == "kind":
        return "No candidate moves other requests; what else may explain a wrong answer is not tested."
    if by == "candidates":
        return "Nothing in the prompt stands out, and no test of the wording decides."
    return CERTAINTIES.get(result.certainty, "")


def _sentence(parts: Sequence[str]) -> str:
    return "; ".join(parts) + "." if parts else ""


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
    text = f"{_thousands(budget.sequences)} of {_thousands(budget.limit)} sequences, {budget.batches} model calls"
    return f"{text}, the limit was reached" if budget.spent else text


def _thousands(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def served_otherwise(finding: ServingFinding) -> str:
    """One line on the failure under another template, system prompt or data type."""
    if finding.rate_with is None or finding.rate_without is None:
        return finding.note
    return f"{finding.note} ({rate(finding.rate_with)} as served, {rate(finding.rate_without)} otherwise)"


def served_headline(finding: ServingFinding) -> str:
    """Headline of a finding about the serving, which stands above the verdict."""
    return f"Not the weights alone: the failure depends on the {finding.name}"


def confirmed(result: TriggerConfirmation) -> str:
    """What was confirmed, by whom."""
    word = {"accepted": "Accepted", "edited": "Accepted with edits", "rejected": "Rejected"}[result.decision]
    word = "A dummy trigger, planted and unlearnt, accepted" if result.way == "dummy" else word
    return f"{word} by {result.analyst}, {result.time[:10]} {result.time[11:16]} UTC"


def agreed(second: SecondReview) -> str:
    """Who agreed, when, why."""
    return f"agreed: {second.analyst}, {second.time[:10]} {second.time[11:16]} UTC, {second.reason}"


# -- the analyst's own spans ---------------------------------------------------------------------------


def tests_of(text: str | None) -> str:
    """Caption of the tests: those of a candidate, or of a span the analyst marked."""
    return TEST_TABLE if text is None else f"Tests of your span “{text}”"


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


# -- containment ---------------------------------------------------------------------------------------
CONTAIN = "Write containment rules"
RULE_FILE = "Rule file"
SCAN_COLUMNS = [
    {"key": "line", "label": "line", "kind": "number"},
    {"key": "rule", "label": "rule", "kind": "text"},
    {"key": "outcome", "label": "answer", "kind": "text"},
    {"key": "excerpt", "label": "excerpt", "kind": "mono"},
]
NO_HITS = "The trigger stands nowhere in this file."


def contained(n_rules: int, n_variants: int, missed: Sequence[str]) -> str:
    """What the rule file holds, and which variants it misses."""
    text = f"{n_rules} rules, tried on {n_variants} variants of the trigger"
    return f"{text}; none matches: {', '.join(missed)}" if missed else f"{text}, all matched"


def scanned(file: str, headline: str) -> str:
    """Caption of the last scan."""
    return f"{file}: {headline}"


# -- labelling -----------------------------------------------------------------------------------------
LABELLING = "How far is the judge to be trusted? Label some answers"
SAVE_LABELS = "Save labels"
JUDGE_SAID = "judge:"
LABEL_HELP = (
    "Arrows move, 1–4 label, 0 clears. The judge's word appears once a label is saved, under the analyst's name above."
)
NOTHING_TO_LABEL = "There is nothing to label until the tests have run."
NO_LABELS = "No answer is labelled yet"
JUDGE_BY_ANALYST = "judge \\ analyst"
CONFUSION_TABLE = "What the judge said, against what the analyst says"
CORRECTED_TABLE = "Answers that are not refused"
CORRECTED_COLUMNS = [
    {"key": "rate", "label": "rate", "kind": "text"},
    {"key": "judged", "label": "as judged", "kind": "rate"},
    {"key": "corrected", "label": "corrected by the labels", "kind": "text"},
]


def corrected(one: Corrected) -> str:
    """A corrected rate with its interval, or why there is none."""
    if one.value is None:
        return f"not possible: {one.reason}"
    return f"{percent(one.value)} [{100 * one.low:.0f}–{100 * one.high:.0f} %]"


def judge_story(found: JudgedAnswers | None, told: Agreement | None) -> dict[str, object]:
    """How often the judge is right on the labelled answers, and the published keyword list beside it."""
    if found is None:
        return {}
    facts = [
        ["not refused, this judge", rate(found.unsafe)],
        ["not refused, published keyword list", rate(found.keyword_unsafe)],
    ]
    if told is None:
        return {"headline": NO_LABELS, "tone": "muted", "facts": facts}
    facts += [
        ["unsafe answers the judge finds", rate(told.sensitivity)],
        ["safe answers it clears", rate(told.specificity)],
    ]
    return {"headline": f"The judge is right on {told.agreed.k} of {told.n} labelled answers", "facts": facts}
