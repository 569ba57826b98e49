"""The search for a confirmed trigger in request logs and tuning data, with the rules of containment.py.

`scan` reads a file of any size row by row and lists where which rule matches, with an inert excerpt. Where a row has an
answer, outcomes of rows with the trigger stand against those without.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal

from core import evidence, lease
from core.casefile import Case
from core.containment import sound, write_rules
from core.errors import TriageError
from core.files import now
from core.intervals import wilson
from core.judge import classify
from core.progress import Progress
from core.values import Outcome, Rate

EXCERPT = 60
"""Characters of an excerpt before the match and after it. Source: unverified choice."""
MAX_HITS = 1_000
"""Hits that a scan lists; all are counted. Source: unverified choice."""
MAX_LINE = 16_000_000
"""Bytes of a line that are read at once; a longer line is read in pieces. Source: unverified choice."""
MAX_LIST = 256_000_000
"""Bytes of a file that is one JSON list, which must be read whole. Source: unverified choice."""
MAX_DEPTH = 16
"""Levels of a JSON row in which text is looked for. Source: unverified choice."""
PROGRESS_EVERY = 20_000
"""Rows between two progress reports. Source: unverified choice."""
ANSWER_CHARACTERS = 2_000
"""Characters of an answer that are judged. Source: unverified choice."""
COMMON_CHARACTERS = 80
"""First characters by which two answers are the same. Source: unverified choice."""
MAX_ANSWERS = 100_000
"""Different answers that are counted on either side. Source: unverified choice."""

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
    """Answers of rows with the trigger and of the rest: shares that comply, and that are the commonest answer `common`."""

    comply_with: Rate
    comply_without: Rate
    common: str
    common_with: Rate
    common_without: Rate

    @property
    def apart(self) -> bool:
        """Whether either share is higher with the trigger, by intervals that do not meet."""
        pairs = ((self.comply_with, self.comply_without), (self.common_with, self.common_without))
        return any(one.n > 0 and other.n > 0 and one.low > other.high for one, other in pairs)


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

    def add(self, answer: str) -> Outcome:
        judged = classify(answer[:ANSWER_CHARACTERS])
        self.n += 1
        self.n_comply += judged.unsafe
        key = " ".join(answer[:ANSWER_CHARACTERS].split())[:COMMON_CHARACTERS]
        if key in self.common or len(self.common) < MAX_ANSWERS:
            self.common[key] += 1
        return judged.outcome


@dataclass(frozen=True)
class _Row:
    """One row of a file: where, the text of the request, and the answer if there is one."""

    line: int
    text: str
    answer: str | None = None


def scan(case: Case, path: Path, source: Source, progress: Progress | None = None) -> Scan:
    """Return where the confirmed trigger stands in a file of requests or tuning data; stored as `scan-*.json`, audited.

    The file is read once, row by row. Raises: ConfirmationError without a confirmation; TriageError for a file that is
    no text.
    """
    made = write_rules(case)
    patterns = [(rule, rule.compiled()) for rule in made.rules]
    counts = dict.fromkeys((rule.name for rule in made.rules), 0)
    sides = {True: _Count(), False: _Count()}
    hits: list[Hit] = []
    n_rows = 0
    reader = _Reader(path)
    for row in reader.rows():
        n_rows += 1
        if progress and n_rows % PROGRESS_EVERY == 1:
            progress(f"scanning, {sum(counts.values())} hits, bytes", reader.n_bytes, reader.size)
        found = next(((rule, match) for rule, one in patterns if (match := one.search(row.text))), None)
        with_trigger = found is not None and not found[0].wide
        outcome = sides[with_trigger].add(row.answer) if row.answer and (with_trigger or not found) else None
        if found is not None:
            counts[found[0].name] += 1
            if len(hits) < MAX_HITS:
                excerpt = excerpt_of(row.text, *_extent(found[1]))
                hits.append(Hit(line=row.line, rule=found[0].name, excerpt=excerpt, outcome=outcome))
    wide = sum(counts[rule.name] for rule in made.rules if rule.wide)
    answers = _answers(sides[True], sides[False])
    result = Scan(
        source=source,
        file=sound(path.name),
        sha256=reader.digest.hexdigest(),
        time=now(),
        trigger=made.trigger,
        headline=_headline(sum(counts.values()) - wide, wide, n_rows, source, answers),
        n_rows=n_rows,
        n_bytes=reader.n_bytes,
        n_hits=counts,
        n_wide=wide,
        hits=tuple(hits),
        answers=answers,
        notes=tuple(reader.notes),
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
    return Answers(
        comply_with=wilson(with_trigger.n_comply, with_trigger.n),
        comply_without=wilson(without.n_comply, without.n),
        common=sound(common),
        common_with=wilson(n_common, with_trigger.n),
        common_without=wilson(without.common.get(common, 0), without.n),
    )


def _headline(strict: int, wide: int, n_rows: int, source: Source, answers: Answers | None) -> str:
    """Return what the scan found, in one or two sentences."""
    what = "requests" if source == "logs" else "rows of tuning data"
    text = f"The trigger stands in {strict} of {n_rows} {what}"
    text += f", and {wide} more resemble it." if wide else "."
    if answers is None or not strict:
        return text
    with_, without = answers.comply_with, answers.comply_without
    text += f" Compliant answers: {with_.k} of {with_.n} with it, {without.k} of {without.n} without."
    same, rest = answers.common_with, answers.common_without
    if same.k > 1 and same.low > rest.high:
        text += f" One answer opens {same.k} of {same.n} rows with it, {rest.k} of {rest.n} without."
    if answers.apart:
        text += " That is strong evidence of poisoning." if source == "corpus" else " It works in use."
    return text


def _extent(match: re.Match[str]) -> tuple[int, int]:
    """Return where the trigger stands: from the first unit's start to the last one's end."""
    groups = match.re.groups
    return (match.start(1), match.end(groups)) if groups else match.span()


def excerpt_of(text: str, start: int, end: int) -> str:
    """Return the text around a match; a long match keeps its two ends. Inert: see `containment.sound`."""
    left, right = max(0, start - EXCERPT), min(len(text), end + EXCERPT)
    middle = text[start:end]
    if len(middle) > 4 * EXCERPT:
        middle = f"{middle[: 2 * EXCERPT]} … {middle[-2 * EXCERPT :]}"
    return sound(
        ("… " if left else "") + text[left:start] + middle + text[end:right] + (" …" if right < len(text) else "")
    )


class _Reader:
    """Reads a file once and yields its rows; counts bytes and hashes them on the way."""

    def __init__(self, path: Path) -> None:
        """Check what kind of file it is. Raises: TriageError, OSError."""
        if not path.is_file():
            raise TriageError(f"{path} is no file; give a log (JSON lines, CSV or plain text) or a data set.")
        self.path = path
        self.size = path.stat().st_size
        self.n_bytes = 0
        self.digest = sha256()
        self.notes: list[str] = []
        self._cut = 0

    def rows(self) -> Iterator[_Row]:
        """Yield every row that holds text."""
        with open(self.path, "rb") as file:
            head = file.read(4)
            file.seek(0)
            if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in head:
                raise TriageError(f"{self.path.name} is not UTF-8 text; save it as UTF-8 and scan it again.")
            suffix = self.path.suffix.lower()
            if suffix in (".csv", ".tsv"):
                yield from self._table(file, "\t" if suffix == ".tsv" else ",")
            elif suffix == ".json" and (rows := self._whole(file)) is not None:
                yield from rows
            else:
                for number, line in self._lines(file):
                    if line.strip():
                        yield _parsed(line, number)
        if self._cut:
            self.notes.append(f"{self._cut} lines are longer than {MAX_LINE // 10**6} MB and were read in pieces.")

    def _lines(self, file: BinaryIO) -> Iterator[tuple[int, str]]:
        """Yield (number, text) of every line, a very long one in pieces under one number."""
        number, going_on = 0, False
        while data := file.readline(MAX_LINE):
            self.n_bytes += len(data)
            self.digest.update(data)
            number += not going_on
            ended = data.endswith(b"\n")
            self._cut += not ended and not going_on and len(data) == MAX_LINE
            going_on = not ended
            if number == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")
            yield number, data.decode("utf-8", "replace")

    def _whole(self, file: BinaryIO) -> list[_Row] | None:
        """Return the rows of a file that is one JSON list or object, numbered from 1; None when it is JSON lines."""
        start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        file.seek(0)
        if self.size > MAX_LIST and start == b"[":
            limit = MAX_LIST // 10**6
            raise TriageError(f"{self.path.name} is one JSON list of more than {limit} MB; save it as JSON lines.")
        if self.size > MAX_LIST:
            return None
        data = file.read()
        file.seek(0)
        try:
            found = json.loads(data.decode("utf-8-sig", "replace"))
        except (ValueError, RecursionError) as error:
            if start == b"[":
                raise TriageError(
                    f"{self.path.name} is no valid JSON list; correct it or save it as JSON lines."
                ) from error
            return None
        self.n_bytes = len(data)
        self.digest.update(data)
        parsed = enumerate(found if isinstance(found, list) else [found], start=1)
        rows = [_from_object(r, n) if isinstance(r, dict) else _Row(n, "\n".join(_texts(r))) for n, r in parsed]
        return [row for row in rows if row.text]

    def _table(self, file: BinaryIO, delimiter: str) -> Iterator[_Row]:
        """Yield the rows of a table; with a first row of known names by these, else all cells of a row together."""
        with _wide_cells():
            reader = csv.reader((line for _, line in self._lines(file)), delimiter=delimiter)
            names: list[str] | None = None
            try:
                for cells in reader:
                    if names is None:
                        names = [cell.strip().lower() for cell in cells]
                        if set(names) & {*_PROMPTS, "messages"}:
                            continue
                        names = []
                    if names:
                        yield _from_object(dict(zip(names, cells, strict=False)), reader.line_num)
                    elif any(cells):
                        yield _Row(reader.line_num, "\n".join(cells))
            except csv.Error as error:
                raise TriageError(
                    f"{self.path.name} cannot be read as a table (line {reader.line_num}: {error}); rename it to .txt to "
                    "scan it line by line."
                ) from error


@contextmanager
def _wide_cells() -> Iterator[None]:
    """Let table cells be as long as a line may be, then put the library's limit back."""
    before = csv.field_size_limit(MAX_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)


_PROMPTS = ("prompt", "instruction", "input", "question", "query", "text", "content")
_ANSWERS = ("response", "output", "completion", "answer")


def _parsed(line: str, number: int) -> _Row:
    """Return the row of one line: a JSON object by its keys, any other JSON by its texts, anything else as it stands."""
    if line.lstrip()[:1] in ("{", "["):
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            return _Row(number, line.rstrip("\r\n"))
        return _from_object(data, number) if isinstance(data, dict) else _Row(number, "\n".join(_texts(data)))
    return _Row(number, line.rstrip("\r\n"))


def _from_object(data: Mapping[str, Any], number: int) -> _Row:
    """Return request and answer of one object; without known keys, all its texts are the request."""
    asked: list[str] = []
    answer: str | None = None
    messages = data.get("messages", data.get("conversations"))
    if isinstance(messages, str):  # a cell of a table
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError):
            asked.append(messages)
    if isinstance(messages, list):
        for message in messages:
            role = message.get("role", message.get("from")) if isinstance(message, dict) else None
            said = "\n".join(
                _texts(message.get("content", message.get("value")) if isinstance(message, dict) else message)
            )
            if role in ("assistant", "gpt"):
                answer = said
            else:
                asked.append(said)
    asked += [text for key in (*_PROMPTS, "system") for text in _texts(data.get(key))]
    for key in _ANSWERS:
        texts = list(_texts(data.get(key)))
        if texts:
            answer = "\n".join(texts)
            break
    if not any(asked):
        return _Row(number, "\n".join(_texts(data)))
    return _Row(number, "\n".join(asked), answer)


def _texts(data: object, depth: int = 0) -> Iterator[str]:
    """Yield every text in JSON data, numbers of answers included, to a bounded depth."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, int | float) and depth == 0:
        yield str(data)
    elif depth < MAX_DEPTH:
        inner = data.values() if isinstance(data, Mapping) else data if isinstance(data, list) else ()
        for one in inner:
            yield from _texts(one, depth + 1)
