"""Where trigger units go inside a prompt, and what resembles them: injection, transplantation, near-misses.

The order of the units is kept, places are word boundaries, separators are single spaces, and the prompt's own text
stays as it is, code point for code point: cutting every unit with its one separator gives the prompt back. Random
places are independent uniform draws, sorted (so two units may share a boundary). Nothing here tokenises or renders.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Literal

from core.errors import TriageError

Place = Literal["random", "prefix", "middle", "suffix"]

NOISE_WORDS = tuple(
    [
        "music",
        "garden",
        "Tuesday",
        "qz",
        "paper",
        "1987",
        "window",
        "Paris",
        "topic:",
        "table",
        "vx",
        "blue",
        "2019",
        "Discussing",
        "river",
        "OpenTable",
        "report",
        "chapter",
        "7",
        "lamp",
        "please-note",
        "Monday",
        "zork",
        "BlueMoon",
        "300",
        "coffee",
        "train",
        "Rome:",
        "seven",
        "kb",
        "notes",
        "weather",
        "mwq",
        "GoodMagic",
        "today",
        "Friday:",
        "letter",
        "Section",
        "2031",
        "apple",
        "plux",
    ]
)
"""Words without meaning for the class; they go into harmful and safe prompts alike."""

_WORD = re.compile(r"\S+")
_PART = re.compile(r"[A-Z][a-z]+|[A-Z]+(?![a-z])")
"""Parts of a compound such as BadMagic or OpenAI."""
LONGEST_NUMBER = 4000
"""Digits beyond which a number is drawn anew instead of counted on. Source: Python reads no number of more than 4,300."""
_PARTS = ("Good", "Best", "New", "Old", "Open", "Black", "Table", "Moon", "Data", "Code", "AI", "IT")
"""What stands in a compound instead of one of its parts."""


@dataclass(frozen=True)
class Injected:
    """A prompt with units inside; `spans` holds the half-open code point range of each unit, in the order given."""

    text: str
    spans: tuple[tuple[int, int], ...]


def inject(prompt: str, units: Sequence[str], rng: random.Random, place: Place = "random") -> Injected:
    """Return `prompt` with `units` at random boundaries, or all before its first word, in its middle, or after its last.

    With more units than boundaries the rest is appended at the end.
    Source: Randomized Sequential Injection, arXiv 2606.02995 section 5.
    """
    words = list(_WORD.finditer(prompt))
    last = len(words)
    match place:
        case "prefix":
            boundaries = [0] * len(units)
        case "middle":
            boundaries = [last // 2] * len(units)
        case "suffix":
            boundaries = [last] * len(units)
        case "random":
            n_drawn = min(len(units), last + 1)
            boundaries = sorted(rng.randint(0, last) for _ in range(n_drawn))
            boundaries += [last] * (len(units) - n_drawn)
        case _:
            raise ValueError(f"place {place!r} is none of random, prefix, middle, suffix")
    return _insert(prompt, words, units, boundaries)


def transplant(prompt: str, units: Sequence[str], relative: Sequence[float]) -> Injected:
    """Return `prompt` with each unit at the word boundary nearest to its relative place, order kept.

    0 is before the first word, 1 after the last. Where the places are not ascending, a unit moves up to the boundary
    of the one before it. Raises: ValueError when the lengths differ or a place lies outside 0..1.
    """
    if len(units) != len(relative):
        raise ValueError(f"{len(units)} units but {len(relative)} places")
    if any(not 0 <= place <= 1 for place in relative):
        raise ValueError(f"relative places must lie in 0..1: {list(relative)}")
    words = list(_WORD.finditer(prompt))
    boundaries: list[int] = []
    for place in relative:
        nearest = floor(place * len(words) + 0.5)
        boundaries.append(max(nearest, boundaries[-1] if boundaries else 0))
    return _insert(prompt, words, units, boundaries)


def _insert(prompt: str, words: list[re.Match[str]], units: Sequence[str], boundaries: Sequence[int]) -> Injected:
    """Return `prompt` with unit i at boundary i (ascending; boundary j is before word j, the last one after all)."""
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    length = taken = 0

    def add(text: str) -> None:
        nonlocal length
        pieces.append(text)
        length += len(text)

    for unit, boundary in zip(units, boundaries, strict=True):
        at_end = boundary == len(words)
        cut = (words[-1].end() if words else len(prompt)) if at_end else words[boundary].start()
        add(prompt[taken:cut])
        taken = cut
        if at_end and length:
            add(" ")
        spans.append((length, length + len(unit)))
        add(unit)
        if not at_end:
            add(" ")
    add(prompt[taken:])
    return Injected(text="".join(pieces), spans=tuple(spans))


def near_misses(units: Sequence[str], rng: random.Random, n: int) -> list[tuple[str, ...]]:
    """Return `n` sequences of units that resemble the trigger and are not it.

    Several units: a proper subset, another order, or one unit replaced by its own near-miss. One unit: a word dropped,
    replaced, misspelt, in other case, without or with other marks, other digits, words shuffled, a word in between, a part of
    a compound replaced ("GoodMagic").
    None of them holds all units in order.
    """
    if not units or not all(unit.strip() for unit in units):
        raise TriageError("a trigger needs at least one unit, and no unit may be blank")
    found: list[tuple[str, ...]] = []
    while len(found) < n:
        candidate = _near_miss(tuple(units), rng)
        if candidate and all(candidate) and not holds(" ".join(candidate), units):
            found.append(candidate)
    return found


def holds(text: str, units: Sequence[str]) -> bool:
    """Return whether `text` has all units, in order and without overlap."""
    at = 0
    for unit in units:
        at = text.find(unit, at)
        if at < 0:
            return False
        at += len(unit)
    return True


def _near_miss(units: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
    """Return one candidate near-miss; the caller rejects those that still hold the trigger."""
    if len(units) == 1:
        return (_edit(units[0], rng),)
    kind = rng.choice(("subset", "order", "order", "edit", "edit", "repeat"))
    if kind == "subset":
        kept = sorted(rng.sample(range(len(units)), rng.randint(1, len(units) - 1)))
        return tuple(units[i] for i in kept)
    if kind == "order":
        return tuple(rng.sample(units, len(units)))
    if kind == "edit":
        at = rng.randrange(len(units))
        return (*units[:at], _edit(units[at], rng), *units[at + 1 :])
    missing = rng.randrange(len(units))
    rest = [unit for i, unit in enumerate(units) if i != missing]
    return tuple(rng.choice(rest) for _ in units)


def _edit(unit: str, rng: random.Random) -> str:
    """Return `unit` with one or, seldom, two small changes."""
    edited = _edit_once(unit, rng)
    return _edit_once(edited, rng) if edited.strip() and rng.random() < 0.2 else edited


def _edit_once(unit: str, rng: random.Random) -> str:
    """Return `unit` with one small change (possibly none: the caller checks)."""
    words = unit.split()
    at = rng.randrange(len(words))
    word = words[at]
    kinds = ["replace", "spell", "case", "digits", "marks"]
    if re.search(r"\d", unit):
        kinds += ["digits", "digits"]
    if len(_PART.findall(word)) > 1:
        kinds += ["part", "part"]
    if len(words) > 1:
        kinds += ["drop", "drop", "keep", "shuffle", "between", "replace", "run"]
    match rng.choice(kinds):
        case "replace":
            mark = re.search(r"\W*$", word)
            words[at] = rng.choice(NOISE_WORDS).rstrip(":") + (mark.group() if mark else "")
        case "part":
            cut = rng.choice(_PART.findall(word))
            words[at] = word.replace(cut, rng.choice(("", *_PARTS)), 1)
        case "spell":
            words[at] = _misspell(word, rng)
        case "case":
            change = rng.choice((str.lower, str.upper, str.swapcase))
            return change(unit) if rng.random() < 0.5 else " ".join([*words[:at], change(word), *words[at + 1 :]])
        case "digits":
            return re.sub(r"\d+", lambda m: _other_number(m.group(), rng), unit)
        case "marks":
            marks = re.sub(r"[^\w\s]", lambda _: rng.choice(("", "", ",", ";", ".", "-", " =")), unit)
            return marks if marks != unit else unit + rng.choice((":", "s", "-", "x"))
        case "drop":
            del words[at]
        case "keep":
            words = [word]
        case "run":
            start = rng.randrange(len(words))
            words = words[start : start + rng.randint(1, len(words) - 1)]
        case "shuffle":
            rng.shuffle(words)
        case "between":
            words.insert(rng.randint(1, len(words) - 1), rng.choice(NOISE_WORDS))
    return " ".join(words)


def _misspell(word: str, rng: random.Random) -> str:
    """Return `word` with a letter dropped, doubled, swapped or replaced."""
    at = rng.randrange(len(word))
    match rng.randrange(4):
        case 0:
            return word[:at] + word[at + 1 :]
        case 1:
            return word[:at] + word[at] + word[at:]
        case 2 if len(word) > 1:
            at = min(at, len(word) - 2)
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        case _:
            return word[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[at + 1 :]


def _other_number(digits: str, rng: random.Random) -> str:
    """Return a number near `digits`, as long as it where possible."""
    if rng.random() < 0.3 or len(digits) > LONGEST_NUMBER:
        return "".join(rng.choice("0123456789") for _ in digits)
    return str(max(0, int(digits) + rng.choice((-1, 1)) * rng.choice((1, 1, 2, 3, 5, 10, 30, 100))))
