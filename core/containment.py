"""Containment before repair: rules that find the confirmed trigger in request logs and tuning data.

`rules` turns the confirmed units into regular expressions, from literal to wide, and tries them on variants of the
trigger (case, spacing, Unicode forms, look-alike letters, zero-width characters, marks, text between the units) and on
near-misses, which no strict rule may match. What each matched stands in the rule file; scanning.py searches with it.

The expressions cannot run away: neighbouring parts share no character, repeats are bounded, and several units are found
by one left-to-right pass (`\\A(?>...)`, atomic groups), in any order by one for each unit. `ENGINES` says where they run: all
of these were tried.
What this does not do: find paraphrases, misspellings or encodings of the trigger, or block anything itself.
"""

import json
import random
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from core import confirmation, evidence
from core.casefile import Case
from core.errors import CaseFileError, ConfirmationError
from core.files import now, write_atomic
from core.injection import near_misses
from core.lookalikes import IGNORED, IS_IGNORED, LOOKALIKES
from core.serial import to_json
from core.transplants import quoted
from core.trigger_forms import FORMS, bare_words
from core.values import Message, Span
from core.writing import HANGUL, LETTERS, SIGNS

SCHEMA = 1
EXACT = "exact"
"""The rule for the trigger as it was confirmed, the strictest."""
ANY_ORDER = "any order"
"""The rule for the units of a trigger in another order, as where a log holds the parts of a request in another one."""
FILE = "containment.json"
N_NEAR_MISSES = 40
"""Near-misses that the rules are tried on. Source: unverified choice."""
ZERO_WIDTH_RUN = 8
"""Characters without width that are skipped between two letters at most. Source: unverified choice."""
GAP_RUN = 40
"""White space, in the wide rule also marks, between two words at most. Source: unverified choice."""

SENTENCE = "Hello, {} if you please."
"""Where variants and near-misses stand when the rules are tried on them; alone where the sentence itself holds part of the trigger."""
MAX_TESTED = 1_000
"""Characters of a text the rules were tried on that the rule file quotes. Source: unverified choice."""
ENGINES = (
    "Python 3.11 or newer (re); PCRE2 with UTF and UCP; Java with UNICODE_CHARACTER_CLASS, and UNICODE_CASE beside "
    "CASE_INSENSITIVE where flags hold i. The wide rule does not pass over combining marks in Java and in PCRE2 from 10.43. "
    "Beside a unit, a superscript, a circled letter or a mark of a rarer script is part of the word to some of them only. "
    "Not RE2 (Go), which has no look-around, nor .NET, which reads UTF-16: search there for the plain text of each unit."
)
"""Engines in which the expressions mean the same."""

_SKIP = f"[{IGNORED}]{{0,{ZERO_WIDTH_RUN}}}"
_SPACE = f"[\\s\\x1c-\\x1f{IGNORED}]{{1,{GAP_RUN}}}"  # these four are white space to Python only
_MARKS = f"[\\W_]{{0,{GAP_RUN}}}"
_APART = f"_\u203f\u2040\u2054\ufe33\ufe34\ufe4d-\ufe4f\uff3f{LETTERS}{HANGUL}{IGNORED}"
"""What no word goes on with, though `\\w` of some engine holds it: marks that connect, scripts that set words or particles together,
and what is not seen."""
_IN_WORD = re.compile(f"[^\\W{_APART}]|[{SIGNS}]")
_BEFORE = f"(?<![^\\W{_APART}])(?<![{SIGNS}])"
_AFTER = f"(?![^\\W{_APART}])(?![{SIGNS}])"


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
    """`containment.json`. `tested` are variants of the trigger and the reported messages, `near_misses` texts that are not it;
    `engines` says in which engines the rules mean what they mean here (empty in files of older versions).
    """

    schema: int
    case: str
    written: str
    trigger: tuple[str, ...]
    confirmed_by: str
    rules: tuple[Rule, ...]
    tested: tuple[Tested, ...]
    near_misses: tuple[Tested, ...]
    engines: str = ""

    @property
    def missed(self) -> tuple[str, ...]:
        """Variants that no rule matches."""
        return tuple(one.variant for one in self.tested if not one.matched)


def write_rules(case: Case) -> RuleFile:
    """Return the rules of the confirmed trigger, stored as `containment.json` in ASCII, and audited when they changed.

    Raises: ConfirmationError, saying what to do, without a confirmation that holds.
    """
    evidence.unchanged(case, confirmation.FILE)
    stored, void = confirmation.stored(case), confirmation.validity(case)
    if stored is None or void is not None:
        why = void or "No trigger has been confirmed."
        raise ConfirmationError(f"There is no trigger to make rules of: {why}")
    if stored.way == "dummy":
        raise ConfirmationError(
            "There is no trigger to make rules of: a dummy trigger is unlearnt, the real one is unknown."
        )
    made = rules(
        stored.units,
        report=case.report.messages,
        spans=stored.spans,
        case=case.manifest.id,
        confirmed_by=stored.analyst,
    )
    before = stored_rules(case) if evidence.is_as_written(case, FILE) else None
    if before is not None and replace(before, written="") == replace(made, written=""):
        return before
    write_atomic(case.path / FILE, json.dumps(to_json(made), ensure_ascii=True, indent=1))
    case.audit("containment rules", actor="engine", trigger=stored.units, missed=made.missed, files=[FILE])
    return made


def stored_rules(case: Case) -> RuleFile | None:
    """Return the stored rule file, or None when there is none or another version wrote it."""
    try:
        return case.read(FILE, RuleFile)
    except CaseFileError:
        return None


# rules ----------------------------------------------------------------------------------------------------------------


def rules(
    units: Sequence[str],
    *,
    report: Sequence[Message] = (),
    spans: Sequence[Span] = (),
    case: str = "",
    confirmed_by: str = "",
    seed: int = 0,
) -> RuleFile:
    """Return the rules of a trigger, tried on its variants, on near-misses and on the `report` where `spans` hold the units."""
    one = len(units) == 1
    inside = [_inside_word(report, span) for span in spans] or [(False, False)] * len(units)
    tolerant = [_whole(unit, _tolerant(unit), *cut) for unit, cut in zip(units, inside, strict=True)]
    said = "\n".join(message.content for message in report)
    made = [
        Rule(
            name=EXACT,
            regex=_in_order([_whole(unit, re.escape(unit), *cut) for unit, cut in zip(units, inside, strict=True)]),
            flags="",
            why="The trigger as it was confirmed" + ("." if one else ": every unit in order, anything in between."),
        ),
        Rule(
            name="same text",
            regex=_in_order(tolerant),
            flags="i",
            why="The same to a reader: any case, white space and Unicode form, look-alike letters, characters without width."
            + _also(units),
        ),
    ]
    if not one:
        why = "The same in any order: a log may hold the parts of a request in another one."
        made.append(Rule(name=ANY_ORDER, regex=_in_any_order(tolerant, units), flags="i", why=why))
    if any(bare_words(unit) for unit in units):
        loose = [_loose(unit) for unit in units if bare_words(unit)]
        why = (
            "Letters and digits alone, whatever marks or white space stand between the words"
            + (": also" if one else ", the units in any order: also")
            + " matches near-misses."
        )
        made.append(Rule(name="wide", regex=_in_any_order(loose, units), flags="i", why=why, wide=True))
    frame = "{}" if any(re.search(part, SENTENCE.format(""), re.IGNORECASE) for part in tolerant) else SENTENCE
    return RuleFile(
        schema=SCHEMA,
        case=case,
        written=now(),
        trigger=tuple(units),
        confirmed_by=confirmed_by,
        rules=tuple(made),
        tested=(
            *(_try(made, name, text, frame.format(text)) for name, text in variants(units)),
            *([_try(made, "as reported", said, said)] if report else ()),
        ),
        near_misses=tuple(_try(made, "near-miss", text, frame.format(text)) for text in different(units, seed)),
        engines=ENGINES,
    )


def _also(units: Sequence[str]) -> str:
    """Return what the rule for the same text matches in everyday writing, where that is not the trigger itself."""
    plain = [" ".join(IS_IGNORED.sub("", unit).split()).lower() for unit in units]
    return "" if plain == list(units) else f" Also matches {quoted(' … '.join(plain))}."


def _in_order(parts: Sequence[str]) -> str:
    """Return one expression for all parts in order with anything in between, each found at its first place.

    The first place of each after the one before is enough: if the parts stand in the text in order, they do so there.
    """
    return parts[0] if len(parts) == 1 else "\\A" + _one_after_another(parts)


def _in_any_order(parts: Sequence[str], units: Sequence[str]) -> str:
    """Return one expression for all parts in any order, each as often as the units hold it: one text is no two units."""
    if len(parts) == 1:
        return parts[0]
    needed = {part: sum(len(re.findall(part, unit, re.IGNORECASE)) for unit in units) for part in parts}
    return "\\A" + "".join(f"(?={_one_after_another([part] * max(1, n))})" for part, n in needed.items())


def _one_after_another(parts: Sequence[str]) -> str:
    return "".join(f"(?>[\\s\\S]*?({part}))" for part in parts)


def _whole(unit: str, regex: str, begins_inside: bool, ends_inside: bool) -> str:
    """Return `regex` between word boundaries where the unit begins or ends as a word does, but not inside of a word of the report."""
    before = _BEFORE if _in_word(unit[:1]) and not begins_inside else ""
    after = _AFTER if _in_word(unit[-1:]) and not ends_inside else ""
    return before + regex + after


def _inside_word(report: Sequence[Message], span: Span) -> tuple[bool, bool]:
    """Return whether the text of a span, without outer white space, goes on before and after it as a word does."""
    content = report[span.message].content
    before, text, after = content[: span.start], content[span.start : span.end], content[span.end :]
    return (not text[:1].isspace() and _in_word(before[-1:]), not text[-1:].isspace() and _in_word(after[:1]))


def _in_word(char: str) -> bool:
    """Return whether a character is a letter, digit or sign of a script that sets its words apart."""
    return _IN_WORD.match(char) is not None


def _tolerant(unit: str) -> str:
    """Return an expression for all texts that read like `unit`; a unit of characters without width stays literal."""
    words = [_clusters(word) for word in IS_IGNORED.sub("", unit).split()]
    if not words:
        return re.escape(unit)
    return _SPACE.join(_SKIP.join(_like(cluster) for cluster in word) for word in words)


def _loose(unit: str) -> str:
    """Return an expression for the letters and digits of `unit`, with any marks between its words."""
    return _MARKS.join(_SKIP.join(_like(cluster) for cluster in _clusters(word)) for word in bare_words(unit))


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
    found = [(name, " ".join(form(unit) for unit in units)) for name, form in FORMS.items()]
    if len(units) > 1:
        found += [
            ("text between the units", " and then, some lines\nlater, ".join(units)),
            ("marks between the units", "... ".join(units)),
            ("units in another order", " ".join(reversed(units))),
        ]
    return [(name, text) for number, (name, text) in enumerate(found) if number == 0 or text != found[0][1]]


def different(units: Sequence[str], seed: int = 0) -> list[str]:
    """Return texts that resemble the trigger and do not read like it: near-misses that differ in more than its form and order."""
    if not all(unit.strip() for unit in units):
        return []
    folded = [read for unit in units if (read := _read(unit))]
    found: dict[str, None] = {}
    for miss in near_misses(units, random.Random(seed), 4 * N_NEAR_MISSES):
        text = _read(" ".join(miss))
        if any(text.count(unit) < sum(other.count(unit) for other in folded) for unit in folded):
            found.setdefault(" ".join(miss))
    return list(found)[:N_NEAR_MISSES]


def _read(text: str) -> str:
    """Return `text` as a reader takes it in: one case, one Unicode form, single spaces, nothing without width."""
    return " ".join(unicodedata.normalize("NFKC", IS_IGNORED.sub("", text)).casefold().split())


def _try(made: Sequence[Rule], variant: str, text: str, searched: str) -> Tested:
    """Return which rules match in what is `searched`, with the `text` that the file quotes."""
    matched = tuple(rule.name for rule in made if rule.compiled().search(searched))
    return Tested(variant=variant, text=sound(text[:MAX_TESTED]), matched=matched)


def sound(text: str) -> str:
    """Return text that every file and terminal can take: control and direction characters as escapes, no half surrogates.

    Line ends and tabs become spaces, so that an excerpt stays one line.
    """
    spaced = re.sub(r"[\t\r\n]+", " ", text)
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in spaced
    )
