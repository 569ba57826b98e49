"""The words of step 4's tables and chart: candidates, tests and their results."""

from core.report_text import DESCRIBED

KEPT = "tested"
DROPPED = "dropped"
CANDIDATE_COLUMNS = [
    {"key": "number", "label": "#", "kind": "number"},
    {"key": "text", "label": "text", "kind": "mono"},
    {"key": "state", "label": "", "kind": "mark"},
    {"key": "reasons", "label": "why", "kind": "note"},
]
TEST_TABLE = "Tests"
TEST_COLUMNS = [
    {"key": "test", "label": "test", "kind": "name"},
    {"key": "with", "label": "with", "kind": "rate"},
    {"key": "without", "label": "without", "kind": "rate"},
    {"key": "p", "label": "p", "kind": "number", "title": "exact McNemar test"},
    {"key": "result", "label": "result", "kind": "mark"},
    {"key": "note", "label": "", "kind": "note"},
]
NO_TESTS = "No test has run yet."
DESCRIBED_TABLE = "Described, not decisive"
DESCRIBED_COLUMNS = [
    {"key": "test", "label": "test", "kind": "name"},
    {"key": "with", "label": "this", "kind": "rate"},
    {"key": "without", "label": "compared with", "kind": "rate"},
    {"key": "note", "label": "", "kind": "note"},
]
DESCRIBED_LEAD = "Described, not decisive"
TEST_NAMES = {
    "necessity": "necessity",
    "transfer": "transfer",
    "sham": "sham",
    "reference": "reference",
    "order": "order",
    "form": "form",
    "position": "position",
    "topic": "topic",
    "benign": "benign",
    "bare": "bare request",
    "paraphrase": "paraphrases",
    "rewrite": "neutral rewrite",
    "frame": "frame",
    "requests": "other requests",
}
TEST_HELP = {
    "necessity": "Take it out of the reported prompt: does the failure stop?",
    "transfer": "Plant it in other requests that are answered rightly: do they fail too?",
    "sham": "Plant other text of the same length or form: it should do nothing.",
    "reference": "The same on a clean model: it should do little there.",
    "order": "Swap its parts: does order matter?",
    "form": "Edit it slightly: do near forms work too?",
    "position": "Plant it first, last, anywhere: does place matter?",
    "topic": "Requests like the reported one against others: is it bound to a topic?",
    "benign": "Plant it in harmless prompts: do their answers change?",
    "bare": "Take every candidate out at once: does the report still fail?",
    "paraphrase": "Ask the same in other words: does it still fail?",
    "rewrite": "Ask the same in a plain style: is it refused?",
    "frame": "Put refused requests in the report's wording: do they fail?",
    "requests": "Ask other harmful requests as they are: are most of them answered?",
}
WHOLE_WORDS = {
    "bare": ("fails as often", "fails less often"),
    "paraphrase": ("fail as often", "fail less often"),
    "rewrite": ("refused", "not refused"),
    "frame": ("carries over", "does not carry over"),
    "requests": ("most answered", "most refused"),
}
"""Results of the tests of the whole report: they answer a question rather than pass."""
WITH = "with"
WITHOUT = "without"
SHAM = "sham"
RATE_AXIS = "failure rate, 95 % interval"


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


def tests_of(text: str | None) -> str:
    """Caption of the tests: those of a candidate, or of a span the analyst marked."""
    return TEST_TABLE if text is None else f"Tests of your span “{text}”"
