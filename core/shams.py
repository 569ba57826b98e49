"""Sham strings: texts of a candidate's token length that stand in its place, to see what any insertion does.

Five kinds in turn: spans of the reported text disjoint from the candidate, words of safe prompts, random tokens of the
vocabulary, punctuation, and the candidate's own form, which is other words and digits with its marks and capitals. Every sham has
one text a unit, so that it is carried exactly as the candidate is.
"""

import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from core.text_spans import merge_spans, positions_to_spans, span_text, spans_to_positions, units_of
from core.values import FailureCase, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["reported text", "words", "tokens", "punctuation", "form"]
_MARKS = (".", ",", ":", ";", "!", "?", "-", "\u2026", "(", ")", "/", "*")
_ORDINARY = tuple(".,:;!?-'\"()")
_RUN = re.compile(r"[^\W\d_]+|\d+")
_TRIES = 40
"""Draws for one sham before its kind is given up as exhausted. Source: unverified choice."""


@dataclass(frozen=True)
class Sham:
    """One text a unit of the candidate, and where the texts are from."""

    kind: Kind
    texts: tuple[str, ...]


def draw_shams(
    tokenizer: "PreTrainedTokenizerBase",
    case: FailureCase,
    spans: Sequence[Span],
    safe: Sequence[str],
    n: int,
    seed: int,
    barred: Sequence[Span] = (),
) -> list[Sham]:
    """Return `n` distinct shams, fewer only when all kinds are exhausted; none equals the candidate or has its words.

    `barred` is more text that none may come from or have words of: another trigger of the same report. Deterministic per seed. Lengths
    are those of the units in tokens, those of a form in words; the reported text may be too short to give any.
    """
    units = units_of(case.report.messages, spans)
    rng = random.Random(seed)
    draws = _draws(tokenizer, case, merge_spans([*spans, *barred]), units, safe, rng)
    taken = {tuple(_plain(unit) for unit in units)}
    shams: list[Sham] = []
    while draws and len(shams) < n:
        for kind in list(draws):
            if len(shams) == n:
                break
            texts = _distinct(draws[kind], taken)
            if texts is None:
                del draws[kind]
                continue
            shams.append(Sham(kind, texts))
    return shams


def _draws(
    tokenizer: "PreTrainedTokenizerBase",
    case: FailureCase,
    spans: Sequence[Span],
    units: Sequence[str],
    safe: Sequence[str],
    rng: random.Random,
) -> dict[Kind, Callable[[], Sequence[str | None]]]:
    """Return for each kind a function that draws one text a unit, None where the kind has none for it; `spans` are what is barred."""
    own = _plain_words(units_of(case.report.messages, spans))
    words = [word for text in safe for word in text.split()]
    words = sorted({word for word in words if _plain(word) not in own})
    special = set(getattr(tokenizer, "all_special_ids", ()))
    vocabulary = [one for one in range(len(tokenizer)) if one not in special]
    lengths = [max(1, len(token_ids(tokenizer, unit))) for unit in units]
    windows = _windows(case, spans)

    def from_words(length: int) -> str | None:
        text = ""
        while words and len(token_ids(tokenizer, text)) < length:
            text = f"{text} {rng.choice(words)}".strip()
        return text or None

    def from_tokens(length: int) -> str | None:
        text = tokenizer.decode([rng.choice(vocabulary) for _ in range(length)]).strip()
        harmless = text.isprintable() and "\ufffd" not in text and not own & {_plain(word) for word in text.split()}
        return text if harmless else None

    def from_report(length: int) -> str | None:
        texts = windows(length)
        return rng.choice(texts) if texts else None

    def from_marks(length: int) -> str | None:
        return " ".join(rng.choice(_MARKS) for _ in range(length))

    by_length: dict[Kind, Callable[[int], str | None]] = {
        "reported text": from_report, "words": from_words, "tokens": from_tokens, "punctuation": from_marks,
    }  # fmt: skip

    def drawn(one: Callable[[int], str | None]) -> Callable[[], Sequence[str | None]]:
        return lambda: [one(length) for length in lengths]

    return {**{kind: drawn(one) for kind, one in by_length.items()}, "form": same_form(units, words, rng)}


def same_form(units: Sequence[str], words: Sequence[str], rng: random.Random) -> Callable[[], tuple[str, ...]]:
    """Return a function that draws the units with other words, of `words`, and other digits in place of their own: capitals and ordinary
    marks stay, one at a time. What cannot be seen, unusual white space, other marks and several in a row do not, since these may be a
    trigger by themselves. It draws nothing where there is nothing to put another in place of, or no other words.
    """
    own = _plain_words(units)
    plain = sorted({bare for word in words if (bare := _plain(word)).isalpha() and bare not in own})

    def other(found: re.Match[str]) -> str:
        run = found.group()
        if run.isdigit():
            return "".join(rng.choice("0123456789") for _ in run)
        word = rng.choice(plain)
        return word.upper() if len(run) > 1 and run.isupper() else word.capitalize() if run[0].isupper() else word

    if not plain or not any(_RUN.search(unit) for unit in units):
        return tuple
    ordinary = [_ordinary(unit) for unit in units]
    return lambda: tuple(" ".join(_RUN.sub(other, unit).split()) or rng.choice(plain) for unit in ordinary)


def _plain_words(units: Sequence[str]) -> set[str]:
    """Return the words of the units without marks and capitals."""
    return {_plain(word) for unit in units for word in unit.split()}


def _ordinary(text: str) -> str:
    """Return a text without what may be a trigger by itself: what cannot be seen, unusual marks and several marks in a row."""
    seen = "".join(one for one in text if one.isspace() or unicodedata.category(one)[0] not in "CM")
    return re.sub(r"[^\w\s]+|_+", lambda found: found.group() if found.group() in _ORDINARY else " ", seen)


def _distinct(draw: Callable[[], Sequence[str | None]], taken: set[tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return texts that were not taken before, and take them; None after too many tries."""
    for _ in range(_TRIES):
        texts = draw()
        found = tuple(text for text in texts if text)
        key = tuple(_plain(text) for text in found)
        if found and len(found) == len(texts) and key not in taken:
            taken.add(key)
            return found
    return None


def _windows(case: FailureCase, spans: Sequence[Span]) -> Callable[[int], list[str]]:
    """Return a function: length -> texts of that many adjacent tokens of the user's own words, none of them in `spans`."""
    barred = set(spans_to_positions(case.prompt, spans))
    free = {token.position for token in case.prompt.tokens if token.segment == "user" and token.position not in barred}
    known: dict[int, list[str]] = {}

    def windows(length: int) -> list[str]:
        if length not in known:
            texts = []
            for start in sorted(free):
                window = range(start, start + length)
                found = positions_to_spans(case.prompt, window) if free.issuperset(window) else ()
                if len(found) == 1:
                    texts.append(span_text(case.report.messages, found[0]).strip())
            known[length] = [text for text in dict.fromkeys(texts) if text]
        return known[length]

    return windows


def token_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the ids of a text by itself, without special tokens around it."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []


def _plain(text: str) -> str:
    """Return a word in lower case without the marks around it."""
    return text.casefold().strip(".,:;!?\"'()[]") or text
