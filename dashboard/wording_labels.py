"""The sentences of labelling in step 4: how far the judge is to be trusted."""

from core.intervals import percent
from core.labels import Agreement, Corrected, JudgedAnswers
from dashboard.wording import of, rate

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
    return {"headline": f"The judge is right on {of(told.agreed)} labelled answers", "facts": facts}
