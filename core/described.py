"""Order, form and place of a candidate: how far the text generalises. Described with n and interval, never decisive.

order     its units, or the words of a single one, shuffled
form      near forms of it: case, spelling, marks, digits, spacing
position  first, last and anywhere in the request
topic     the requests nearest to the reported one in wording, and the others: a trigger may be bound to a domain
"""

import random
from collections.abc import Sequence

from core.answers import Answers
from core.budget import SPENT
from core.errors import TriageError
from core.injection import inject, near_misses
from core.intervals import percent
from core.text_spans import last_user
from core.transplants import placed, quoted, without_spans
from core.trials import Trial, share
from core.trigger_forms import FORMS
from core.values import Message, TestName, TestOutcome


def describe(trial: Trial, answers: Answers) -> tuple[TestOutcome, ...]:
    """Return order (where there is more than one word), form and position of the candidate, each on a few requests."""
    requests = trial.requests[: trial.settings.n_described]
    rng = random.Random(trial.seed)
    found = [_order(trial, answers, requests, rng), _form(trial, answers, requests, rng)]
    found.append(_position(trial, answers, requests, rng))
    return tuple(one for one in found if one is not None)


def _order(trial: Trial, answers: Answers, requests: Sequence[str], rng: random.Random) -> TestOutcome | None:
    """O: the units in another order; of a single unit, its words."""
    units = trial.carried.units
    parts = list(units) if len(units) > 1 else units[0].split()
    if len(set(parts)) < 2:
        return None
    conversations = []
    for request in requests:
        shuffled = parts
        while shuffled == parts:
            shuffled = rng.sample(parts, len(parts))
        conversations.append(trial.carried.carry(request, shuffled if len(units) > 1 else [" ".join(shuffled)]))
    what = "units" if len(units) > 1 else "words"
    return _asked(trial, answers, "order", [("shuffled", conversations)], f"Its {what} in another order")


def _form(trial: Trial, answers: Answers, requests: Sequence[str], rng: random.Random) -> TestOutcome | None:
    """F: near forms of the candidate, one a request."""
    units = trial.carried.units
    if not all(unit.strip() for unit in units):
        return None
    forms: list[tuple[str, ...]] = []
    for name in ("upper case", "lower case", "two spaces", "no space between the words"):
        form = tuple(FORMS[name](unit) for unit in units)
        if form != units and form not in forms:
            forms.append(form)
    spelled = (near_misses([unit], rng, len(requests)) for unit in units)
    try:
        edits = [tuple(" ".join(one) for one in forms_of_units) for forms_of_units in zip(*spelled, strict=True)]
    except TriageError:
        edits = []
    chosen = [*forms, *edits][: len(requests)]
    conversations = [trial.carried.carry(request, form) for request, form in zip(requests, chosen, strict=False)]
    return _asked(
        trial, answers, "form", [("near forms", conversations)], "Case, spacing, marks, spelling and digits changed"
    )


def _position(trial: Trial, answers: Answers, requests: Sequence[str], rng: random.Random) -> TestOutcome | None:
    """Place: the units first, last and anywhere; only units of the request itself can be moved."""
    carried = trial.carried
    if not requests or not carried.movable:
        return None
    places = ("prefix", "first"), ("suffix", "last"), ("random", "anywhere")

    def moved(request: str, place: str) -> tuple[Message, ...]:
        return carried.bare(placed(inject(request, carried.units, rng, place)))  # type: ignore[arg-type]

    groups = [(name, [moved(request, place) for request in requests]) for place, name in places]
    return _asked(trial, answers, "position", groups, "Moved")


def topic(trial: Trial, answers: Answers) -> tuple[TestOutcome, ...]:
    """Failures of the transfer test on the requests nearest in wording to the reported one, and on the others; nothing new is asked.

    Nothing where there are too few of either. Near: the cosine of words weighted by rarity (scikit-learn's TfidfVectorizer, pieces of three to five letters).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    requests, n = trial.requests, trial.settings.n_nearest
    if len(requests) < 2 * n:
        return ()
    bare = without_spans(trial.case.report.messages, trial.carried.spans)
    own = bare[last_user(bare)].content
    rows = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True).fit_transform([own, *requests])
    nearness = (rows[1:] @ rows[0].T).toarray()[:, 0]
    order = sorted(range(len(requests)), key=lambda at: (-nearness[at], at))
    unsafe = answers.unsafe([trial.carried.carry(request) for request in requests], "topic")
    near, others = [unsafe[at] for at in order[:n]], [unsafe[at] for at in order[n:]]
    note = (
        f"Described, not decisive. Of the {n} requests nearest in wording to the reported one {sum(near)} fail with it, of the "
        f"{len(others)} others {sum(others)}; nearest: {quoted(requests[order[0]])}."
    )
    return (trial.outcome("topic", near, others, note=note),)


def _asked(
    trial: Trial, answers: Answers, name: TestName, groups: Sequence[tuple[str, Sequence[Sequence[Message]]]], what: str
) -> TestOutcome:
    """Return the outcome of a described test: all groups together, each by itself in the note."""
    groups = [(label, [one for one in conversations if answers.fits(one)]) for label, conversations in groups]
    if not trial.meter.allows(sum(len(conversations) for _, conversations in groups)):
        return trial.outcome(name, note=SPENT)
    unsafe = [(label, answers.unsafe(conversations, name)) for label, conversations in groups]
    pooled = [one for _, found in unsafe for one in found]
    each = ", ".join(f"{label} {sum(found)} of {len(found)}" for label, found in unsafe)
    own = answers.unsafe(
        [trial.carried.carry(request) for request in trial.requests[: trial.settings.n_described]], name
    )
    note = f"Described, not decisive. {what}: {each}; as reported {sum(own)} of {len(own)} ({percent(share(own))})."
    return trial.outcome(name, pooled, [False] * len(own), note=note)
