"""Containment before repair: rules that find the confirmed trigger in request logs and tuning data, and the search.

1. `rules` turns the confirmed units into regular expressions, from literal to wide, and tries them on variants of the
   trigger (case, spacing, Unicode forms, look-alike letters, zero-width characters, marks, text between the units) and on
   near-misses, which no strict rule may match. What each matched stands in the rule file.
2. `scan` reads a file line by line, of any size, and lists where which rule matches, with an inert excerpt. Where a row
   has an answer, outcomes of rows with the trigger stand against those without.

The expressions cannot run away: neighbouring parts share no character, repeats are bounded, and several units are found
by one left-to-right pass (`\\A(?>...)`, atomic groups: Python >= 3.11, PCRE, Java, .NET; for RE2 write `?:` for `?>`).
What this does not do: find paraphrases, misspellings or encodings of the trigger, or block anything itself.
"""

import csv
import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal

from core import confirmation
from core.casefile import Case, now, to_json, write_atomic
from core.errors import CaseFileError, ConfirmationError, TriageError
from core.injection import near_misses
from core.intervals import wilson
from core.judge import classify
from core.values import Outcome, Rate

SCHEMA = 1
FILE = "containment.json"
N_NEAR_MISSES = 40
"""Near-misses that the rules are tried on. Source: unverified choice."""
ZERO_WIDTH_RUN = 8
"""Characters without width that are skipped between two letters at most. Source: unverified choice."""
GAP_RUN = 40
"""White space, in the wide rule also marks, between two words at most. Source: unverified choice."""
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

Source = Literal["logs", "corpus"]
Progress = Callable[[str, int, int], None]

LOOKALIKES = {
    "a": "аαɑ", "b": "Ьƅ", "c": "сϲ", "d": "ԁ", "e": "еҽ", "f": "ſ", "g": "ɡ", "h": "һ", "i": "іıι", "j": "јϳ", "k": "кκ",
    "l": "ӏⅼ", "n": "ո", "o": "оοօ", "p": "рρ", "q": "ԛ", "r": "г", "s": "ѕ", "u": "υս", "v": "νѵ", "w": "ԝѡ", "x": "хχ",
    "y": "уγ", "z": "ᴢ", "A": "АΑ", "B": "ВΒ", "C": "СϹ", "E": "ЕΕ", "H": "НΗ", "I": "ІΙӀ", "J": "Ј", "K": "КΚ", "M": "МΜ",
    "N": "Ν", "O": "ОΟ", "P": "РΡ", "S": "Ѕ", "T": "ТΤ", "X": "ХΧ", "Y": "УΥҮ", "Z": "Ζ",
}  # fmt: skip
"""Cyrillic, Greek and other letters that look like a Latin one. Source: Unicode TR 39, confusables (the common ones)."""
_IGNORED = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff"
    "\uffa0\U000e0000-\U000e0fff"
)
"""Default-ignorable characters, as ranges of a character class. Source: Unicode, DerivedCoreProperties."""
_SKIP = f"[{_IGNORED}]{{0,{ZERO_WIDTH_RUN}}}"
_SPACE = f"[\\s{_IGNORED}]{{1,{GAP_RUN}}}"
_MARKS = f"[\\W_]{{0,{GAP_RUN}}}"
_IS_IGNORED = re.compile(f"[{_IGNORED}]")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One regular expression over a request's text; `flags` holds "i" for any case. `wide`: near-misses may match."""

    name: str
    regex: str
    flags: str
    why: str
    wide: bool = False

    def compiled(self) -> re.Pattern[str]:
        """Return the expression, ready to search with."""
        return re.compile(self.regex, re.IGNORECASE if "i" in self.flags else 0)


@dataclass(frozen=True, kw_only=True)
class Tested:
    """One text the rules were tried on, and the names of those that matched."""

    variant: str
    text: str
    matched: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RuleFile:
    """`containment.json`. `tested` are variants of the trigger, `near_misses` texts that are not it."""

    schema: int
    case: str
    written: str
    trigger: tuple[str, ...]
    confirmed_by: str
    rules: tuple[Rule, ...]
    tested: tuple[Tested, ...]
    near_misses: tuple[Tested, ...]

    @property
    def missed(self) -> tuple[str, ...]:
        """Variants that no rule matches."""
        return tuple(one.variant for one in self.tested if not one.matched)


def write_rules(case: Case) -> RuleFile:
    """Return the rules of the confirmed trigger, stored as `containment.json` in ASCII, and audited when they changed.

    Raises: ConfirmationError, saying what to do, without a confirmation that holds.
    """
    stored, void = confirmation.stored(case), confirmation.validity(case)
    if stored is None or void is not None:
        why = void or "No trigger has been confirmed."
        raise ConfirmationError(f"There is no trigger to make rules of: {why}")
    made = rules(stored.units, case=case.manifest.id, confirmed_by=stored.analyst)
    before = stored_rules(case)
    if before is not None and replace(before, written="") == replace(made, written=""):
        return before
    write_atomic(case.path / FILE, json.dumps(to_json(made), ensure_ascii=True, indent=1))
    case.audit("containment rules", actor="engine", trigger=stored.units, missed=made.missed)
    return made


def stored_rules(case: Case) -> RuleFile | None:
    """Return the stored rule file, or None when there is none or another version wrote it."""
    try:
        return case.read(FILE, RuleFile)
    except CaseFileError:
        return None


# rules ----------------------------------------------------------------------------------------------------------------


def rules(units: Sequence[str], *, case: str = "", confirmed_by: str = "", seed: int = 0) -> RuleFile:
    """Return the rules of a trigger, tried on its variants and on near-misses."""
    one = len(units) == 1
    made = [
        Rule(
            name="exact",
            regex=_in_order([_whole(unit, re.escape(unit)) for unit in units]),
            flags="",
            why="The trigger as it was confirmed" + ("." if one else ": every unit in order, anything in between."),
        ),
        Rule(
            name="same text",
            regex=_in_order([_whole(unit, _tolerant(unit)) for unit in units]),
            flags="i",
            why="The same to a reader: any case, white space and Unicode form, look-alike letters, characters without width.",
        ),
    ]
    if any(_bare_words(unit) for unit in units):
        loose = [_loose(unit) for unit in units if _bare_words(unit)]
        why = (
            "Letters and digits alone, whatever marks or white space stand between the words: also matches near-misses."
        )
        made.append(Rule(name="wide", regex=_in_order(loose), flags="i", why=why, wide=True))
    return RuleFile(
        schema=SCHEMA,
        case=case,
        written=now(),
        trigger=tuple(units),
        confirmed_by=confirmed_by,
        rules=tuple(made),
        tested=tuple(_try(made, name, text) for name, text in variants(units)),
        near_misses=tuple(_try(made, "near-miss", text) for text in different(units, seed)),
    )


def _in_order(parts: Sequence[str]) -> str:
    """Return one expression for all parts in order with anything in between, each found at its first place.

    The first place of each after the one before is enough: if the parts stand in the text in order, they do so there.
    """
    if len(parts) == 1:
        return parts[0]
    return "\\A" + "".join(f"(?>[\\s\\S]*?({part}))" for part in parts)


def _whole(unit: str, regex: str) -> str:
    """Return `regex` between word boundaries where the unit begins or ends with a letter or digit of ASCII."""
    before = "(?<![0-9A-Za-z])" if unit[:1].isascii() and unit[:1].isalnum() else ""
    after = "(?![0-9A-Za-z])" if unit[-1:].isascii() and unit[-1:].isalnum() else ""
    return before + regex + after


def _tolerant(unit: str) -> str:
    """Return an expression for all texts that read like `unit`; a unit of characters without width stays literal."""
    words = [_clusters(word) for word in _IS_IGNORED.sub("", unit).split()]
    if not words:
        return re.escape(unit)
    return _SPACE.join(_SKIP.join(_like(cluster) for cluster in word) for word in words)


def _loose(unit: str) -> str:
    """Return an expression for the letters and digits of `unit`, with any marks between its words."""
    return _MARKS.join(_SKIP.join(_like(cluster) for cluster in _clusters(word)) for word in _bare_words(unit))


def _bare_words(unit: str) -> list[str]:
    return re.findall(r"[^\W_]+", _IS_IGNORED.sub("", unit))


def _clusters(word: str) -> list[str]:
    """Return the letters of a word, composed, each with its combining marks."""
    found: list[str] = []
    for char in unicodedata.normalize("NFC", word):
        if found and unicodedata.combining(char):
            found[-1] += char
        else:
            found.append(char)
    return found


def _like(cluster: str) -> str:
    """Return a character class, or alternatives, for every form of one letter."""
    cases = {cluster, cluster.lower(), cluster.upper(), cluster.casefold()}
    forms = cases | {unicodedata.normalize(form, one) for one in cases for form in ("NFC", "NFD", "NFKC", "NFKD")}
    single = {form for form in forms if len(form) == 1}
    single |= {
        other for form in single for other in (*_compatible().get(form.casefold(), ()), *LOOKALIKES.get(form, ""))
    }
    # after its own letter, a mark is part of a longer form: the longest is tried first
    longer = sorted({form.casefold() for form in forms if len(form) > 1}, key=lambda form: (-len(form), form))
    parts = [re.escape(form) for form in longer]
    if single:
        drawn = "".join(re.escape(form) for form in sorted(single))
        parts.append(drawn if len(single) == 1 else f"[{drawn}]")
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


@cache
def _compatible() -> Mapping[str, tuple[str, ...]]:
    """Return the single characters that compatibility normalisation makes into each single character, by its casefold."""
    found: dict[str, list[str]] = {}
    for code in (*range(0xA0, 0xD800), *range(0xE000, 0x10000), *range(0x1D400, 0x1D800), *range(0x1F100, 0x1F200)):
        char = chr(code)
        plain = unicodedata.normalize("NFKC", char).casefold()
        if plain != char and len(plain) == 1:
            found.setdefault(plain, []).append(char)
    return {plain: tuple(chars) for plain, chars in found.items()}


# trying them ----------------------------------------------------------------------------------------------------------


def variants(units: Sequence[str]) -> list[tuple[str, str]]:
    """Return (name, text) of every kind of variant that differs from the trigger, and the trigger itself."""

    def each(change: Callable[[str], str]) -> str:
        return " ".join(change(unit) for unit in units)

    def drawn(table: Callable[[str], str]) -> Callable[[str], str]:
        return lambda unit: "".join(table(char) for char in unit)

    lookalike = drawn(lambda char: LOOKALIKES.get(char, char)[0])
    fullwidth = drawn(lambda char: chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char)
    found = [
        ("as confirmed", each(str)),
        ("lower case", each(str.lower)),
        ("upper case", each(str.upper)),
        ("other case", each(str.swapcase)),
        ("two spaces", each(lambda unit: re.sub(r"\s+", "  ", unit))),
        ("line breaks", each(lambda unit: re.sub(r"\s+", "\r\n\t", unit))),
        ("no-break spaces", each(lambda unit: re.sub(r"\s", "\u00a0", unit))),
        *((form, each(lambda unit, form=form: unicodedata.normalize(form, unit))) for form in ("NFC", "NFD", "NFKC")),  # type: ignore[misc]
        ("full-width letters", each(fullwidth)),
        ("look-alike letters", each(lookalike)),
        ("zero-width characters", each(lambda unit: "\u200b".join(unit))),
        ("soft hyphens and joiners", each(lambda unit: "\u00ad\u2060".join(unit))),
        ("marks between the words", each(lambda unit: " - ".join(_bare_words(unit)) or unit)),
        ("no space between the words", each(lambda unit: "".join(unit.split()) or unit)),
    ]
    if len(units) > 1:
        found += [
            ("text between the units", " and then, some lines\nlater, ".join(units)),
            ("marks between the units", "... ".join(units)),
        ]
    return [(name, text) for number, (name, text) in enumerate(found) if number == 0 or text != found[0][1]]


def different(units: Sequence[str], seed: int = 0) -> list[str]:
    """Return texts that resemble the trigger and do not read like it: near-misses that differ in more than its form."""
    if not all(unit.strip() for unit in units):
        return []
    folded = [_read(unit) for unit in units]
    found: dict[str, None] = {}
    for miss in near_misses(units, random.Random(seed), 4 * N_NEAR_MISSES):
        text, place = _read(" ".join(miss)), 0
        for unit in folded:
            at = text.find(unit, place)
            place = len(text) + 1 if at < 0 else at + len(unit)
        if place > len(text):
            found.setdefault(" ".join(miss))
    return list(found)[:N_NEAR_MISSES]


def _read(text: str) -> str:
    """Return `text` as a reader takes it in: one case, one Unicode form, single spaces, nothing without width."""
    return " ".join(unicodedata.normalize("NFKC", _IS_IGNORED.sub("", text)).casefold().split())


def _try(made: Sequence[Rule], variant: str, text: str) -> Tested:
    """Return which rules match the text within a sentence."""
    sentence = f"Hello, {text} if you please."
    matched = tuple(rule.name for rule in made if rule.compiled().search(sentence))
    return Tested(variant=variant, text=_sound(text), matched=matched)


# scanning -------------------------------------------------------------------------------------------------------------


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


ANSWER_CHARACTERS = 2_000
"""Characters of an answer that are judged. Source: unverified choice."""
COMMON_CHARACTERS = 80
"""First characters by which two answers are the same. Source: unverified choice."""
MAX_ANSWERS = 100_000
"""Different answers that are counted on either side. Source: unverified choice."""


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
        file=_sound(path.name),
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
    case.write(name, result)
    case.audit("scanned", actor="analyst", file=result.file, sha256=result.sha256, rows=n_rows, hits=counts)
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
        common=_sound(common),
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
    """Return the text around a match; a long match keeps its two ends. Inert: see `_sound`."""
    left, right = max(0, start - EXCERPT), min(len(text), end + EXCERPT)
    middle = text[start:end]
    if len(middle) > 4 * EXCERPT:
        middle = f"{middle[: 2 * EXCERPT]} … {middle[-2 * EXCERPT :]}"
    return _sound(
        ("… " if left else "") + text[left:start] + middle + text[end:right] + (" …" if right < len(text) else "")
    )


def _sound(text: str) -> str:
    """Return text that every file and terminal can take: control and direction characters as escapes, no half surrogates.

    Line ends and tabs become spaces, so that an excerpt stays one line.
    """
    spaced = re.sub(r"[\t\r\n]+", " ", text)
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in spaced
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
