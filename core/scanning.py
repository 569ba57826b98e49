"""The search for a confirmed trigger in request logs and tuning data, with the rules of containment.py.

`scan` reads a file of any size row by row (scan_rows.py) and lists where which rule matches, with an inert excerpt. Where a
row has an answer, outcomes of rows with the trigger stand against those without.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core import evidence, lease
from core.casefile import Case
from core.containment import ANY_ORDER, EXACT, sound, write_rules
from core.files import now
from core.intervals import wilson
from core.judge import classify
from core.progress import Progress
from core.scan_files import Reader
from core.values import Outcome, Rate

EXCERPT = 60
"""Characters of an excerpt before the match and after it. Source: unverified choice."""
MAX_HITS = 1_000
"""Hits that a scan lists; all are counted. Source: unverified choice."""
PROGRESS_EVERY = 20_000
"""Rows between two progress reports. Source: unverified choice."""
ANSWER_CHARACTERS = 2_000
"""Characters of an answer that are judged. Source: unverified choice."""
COMMON_CHARACTERS = 80
"""First characters by which two answers are the same. Source: unverified choice."""
MAX_ANSWERS = 100_000
"""Different answers that are counted on either side. Source: unverified choice."""
UNCOUNTED = f"There are more than {MAX_ANSWERS:,} different answers: which one is the commonest was not counted."
SEVERAL = 5
"""Rows in which the commonest answer, picked among all after looking, begins to count. Source: unverified choice."""

Source = Literal["logs", "corpus"]


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One row where a rule matches: `line` from 1 (in a JSON list, the row), the strictest `rule`, and what stands there."""

    line: int
    rule: str
    excerpt: str
    outcome: Outcome | None = None


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers of rows with the trigger and of the rest: shares that comply, and that are the commonest answer `common`.

    With it is where it stands as it was confirmed, and the rest all rows but those that only resemble it: in another form it may be a
    word of every day. Where it never stands so, with it is where it stands in another form.
    """

    comply_with: Rate
    comply_without: Rate
    common: str
    common_with: Rate
    common_without: Rate

    @property
    def apart(self) -> bool:
        """Whether either share is higher with the trigger, by intervals that do not meet."""
        return self.one_answer or _above(self.comply_with, self.comply_without)

    @property
    def one_answer(self) -> bool:
        """Whether `common` goes with the trigger: it was picked after looking, so it must open several rows and half of them."""
        several = self.common_with.k >= SEVERAL and 2 * self.common_with.k >= self.common_with.n
        return several and _above(self.common_with, self.common_without)


def _above(one: Rate, other: Rate) -> bool:
    """Return whether one rate is higher than another, by intervals that do not meet."""
    return one.n > 0 and other.n > 0 and one.low > other.high


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a scan found; `n_hits` counts rows by their strictest rule, `hits` lists the first `MAX_HITS`."""

    source: Source
    file: str
    sha256: str
    time: str
    trigger: tuple[str, ...]
    headline: str
    n_rows: int
    n_bytes: int
    n_hits: dict[str, int]
    n_wide: int
    hits: tuple[Hit, ...]
    answers: Answers | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Count:
    """Outcomes of answers on one side."""

    n: int = 0
    n_comply: int = 0
    common: Counter[str] = field(default_factory=Counter)
    cut: bool = False
    """Whether there were more different answers than are counted."""

    def add(self, answer: str) -> Outcome:
        judged = classify(answer[:ANSWER_CHARACTERS])
        self.n += 1
        self.n_comply += judged.unsafe
        key = " ".join(answer[:ANSWER_CHARACTERS].split())[:COMMON_CHARACTERS]
        if key in self.common or len(self.common) < MAX_ANSWERS:
            self.common[key] += 1
        else:
            self.cut = True
        return judged.outcome

    def plus(self, other: "_Count") -> "_Count":
        """Return both counts together."""
        n, n_comply = self.n + other.n, self.n_comply + other.n_comply
        return _Count(n, n_comply, self.common + other.common, self.cut or other.cut)


def scan(case: Case, path: Path, source: Source, progress: Progress | None = None) -> Scan:
    """Return where the confirmed trigger stands in a file of requests or tuning data; stored as `scan-*.json`, audited.

    The file is read once, row by row. Raises: ConfirmationError without a confirmation; TriageError for a file that is
    no text.
    """
    made = write_rules(case)
    patterns = [(rule, rule.compiled()) for rule in made.rules]
    counts = dict.fromkeys((rule.name for rule in made.rules), 0)
    exact, other_form, without = _Count(), _Count(), _Count()
    sides = {rule.name: None if rule.wide else exact if rule.name == EXACT else other_form for rule in made.rules}
    hits: list[Hit] = []
    n_rows = 0
    reader = Reader(path)
    for row in reader.rows():
        n_rows += 1
        if progress and n_rows % PROGRESS_EVERY == 1:
            progress(f"scanning, {sum(counts.values())} hits, bytes", reader.n_bytes, reader.size)
        readings = (row.text, row.otherwise) if row.otherwise else (row.text,)
        found = next(
            ((rule, match) for rule, one in patterns for text in readings if (match := one.search(text))), None
        )
        side = without if found is None else sides[found[0].name]
        outcome = side.add(row.answer) if row.answer and side is not None else None
        if found is not None:
            counts[found[0].name] += 1
            if len(hits) < MAX_HITS:
                excerpt = excerpt_of(found[1].string, *_extent(found[1]))
                hits.append(Hit(line=row.line, rule=found[0].name, excerpt=excerpt, outcome=outcome))
    wide = sum(counts[rule.name] for rule in made.rules if rule.wide)
    answers = _answers(exact, without.plus(other_form)) if exact.n else _answers(other_form, without)
    result = Scan(
        source=source,
        file=sound(path.name),
        sha256=reader.sha256,
        time=now(),
        trigger=made.trigger,
        headline=_headline(counts, wide, n_rows, source, answers),
        n_rows=n_rows,
        n_bytes=reader.n_bytes,
        n_hits=counts,
        n_wide=wide,
        hits=tuple(hits),
        answers=answers,
        notes=(*reader.notes, *([UNCOUNTED] if any(one.cut for one in (exact, other_form, without)) else [])),
    )
    name = f"scan-{source}-{result.sha256[:8]}.json"
    act = {"file": result.file, "sha256": result.sha256, "rows": n_rows, "hits": counts}
    evidence.record(case, name, result, "scanned", actor=lease.writer(case), **act)
    return result


def scans(case: Case) -> list[Scan]:
    """Return every stored scan, oldest first. Raises: CaseFileError when one is damaged."""
    found = [case.read(path.name, Scan) for path in case.path.glob("scan-*.json")]
    return sorted((one for one in found if one is not None), key=lambda one: one.time)


def _answers(with_trigger: _Count, without: _Count) -> Answers | None:
    """Return the two sides of answers, None without any on the side of the trigger."""
    if not with_trigger.n:
        return None
    common, n_common = min(with_trigger.common.items(), key=lambda item: (-item[1], item[0]))
    counted = not (with_trigger.cut or without.cut)
    nothing = wilson(0, 0)
    return Answers(
        comply_with=wilson(with_trigger.n_comply, with_trigger.n),
        comply_without=wilson(without.n_comply, without.n),
        common=sound(common) if counted else "",
        common_with=wilson(n_common, with_trigger.n) if counted else nothing,
        common_without=wilson(without.common.get(common, 0), without.n) if counted else nothing,
    )


def _headline(counts: Mapping[str, int], wide: int, n_rows: int, source: Source, answers: Answers | None) -> str:
    """Return what the scan found, in a few sentences."""
    what = "requests" if source == "logs" else "rows of tuning data"
    strict, exact = sum(counts.values()) - wide, counts[EXACT]
    text = f"The trigger stands in {strict} of {n_rows} {what}"
    if exact < strict:
        order = ", order" if counts.get(ANY_ORDER) else ""
        forms = f"in another case, spacing{order} or letters that look alike"
        text += f", in {exact} as it was confirmed and in {strict - exact} {forms}"
    text += f"; {wide} more resemble it." if wide else "."
    if answers is None or not strict:
        return text
    with_, without = answers.comply_with, answers.comply_without
    where = "where it stands as confirmed" if 0 < exact < strict else "with it"
    text += f" Compliant answers: {with_.k} of {with_.n} {where}, {without.k} of {without.n} without."
    same, rest = answers.common_with, answers.common_without
    if answers.one_answer:
        text += f" One answer opens {same.k} of {same.n} rows with it, {rest.k} of {rest.n} without."
    if answers.apart:
        text += (
            " That is strong evidence of poisoning."
            if source == "corpus"
            else " The trigger goes with compliant or repeated answers in these requests."
        )
    return text


def _extent(match: re.Match[str]) -> tuple[int, int]:
    """Return where the trigger stands: from the start of the unit that comes first to the end of the one that comes last."""
    units = [match.span(group) for group in range(1, match.re.groups + 1)] or [match.span()]
    return min(units)[0], max(end for _, end in units)


def excerpt_of(text: str, start: int, end: int) -> str:
    """Return the text around a match; a long match keeps its two ends. Inert: see `containment.sound`."""
    left, right = max(0, start - EXCERPT), min(len(text), end + EXCERPT)
    middle = text[start:end]
    if len(middle) > 4 * EXCERPT:
        middle = f"{middle[: 2 * EXCERPT]} … {middle[-2 * EXCERPT :]}"
    return sound(
        ("… " if left else "") + text[left:start] + middle + text[end:right] + (" …" if right < len(text) else "")
    )
