"""Sham strings: texts of a candidate's token length that stand in its place, to see what any insertion does.

Four kinds in turn: spans of the reported text disjoint from the candidate, words of safe prompts, random tokens of the
vocabulary, punctuation. Every sham has one text a unit, so that it is carried exactly as the candidate is.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from core import chat
from core.values import FailureCase, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["reported text", "words", "tokens", "punctuation"]
_MARKS = (".", ",", ":", ";", "!", "?", "-", "\u2026", "(", ")", "/", "*")
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
    are those of the units in tokens; the reported text may be too short to give any.
    """
    units = chat.units_of(case.report.messages, spans)
    lengths = [max(1, len(token_ids(tokenizer, unit))) for unit in units]
    rng = random.Random(seed)
    draws = _draws(tokenizer, case, chat.merge_spans([*spans, *barred]), safe, rng)
    taken = {tuple(_plain(unit) for unit in units)}
    shams: list[Sham] = []
    while draws and len(shams) < n:
        for kind in list(draws):
            if len(shams) == n:
                break
            texts = _distinct(draws[kind], lengths, taken)
            if texts is None:
                del draws[kind]
                continue
            shams.append(Sham(kind, texts))
    return shams


def _draws(
    tokenizer: "PreTrainedTokenizerBase",
    case: FailureCase,
    spans: Sequence[Span],
    safe: Sequence[str],
    rng: random.Random,
) -> dict[Kind, Callable[[int], str | None]]:
    """Return for each kind a function: length in tokens -> one text, or None where the kind has nothing so long."""
    own = {_plain(word) for unit in chat.units_of(case.report.messages, spans) for word in unit.split()}
    words = sorted({word for text in safe for word in text.split() if _plain(word) not in own})
    special = set(getattr(tokenizer, "all_special_ids", ()))
    vocabulary = [one for one in range(len(tokenizer)) if one not in special]
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

    return {"reported text": from_report, "words": from_words, "tokens": from_tokens, "punctuation": from_marks}


def _distinct(
    draw: Callable[[int], str | None], lengths: Sequence[int], taken: set[tuple[str, ...]]
) -> tuple[str, ...] | None:
    """Return texts of the lengths that were not taken before, and take them; None after too many tries."""
    for _ in range(_TRIES):
        texts = [draw(length) for length in lengths]
        found = tuple(text for text in texts if text)
        key = tuple(_plain(text) for text in found)
        if len(found) == len(lengths) and key not in taken:
            taken.add(key)
            return found
    return None


def _windows(case: FailureCase, spans: Sequence[Span]) -> Callable[[int], list[str]]:
    """Return a function: length -> texts of that many adjacent tokens of the user's own words, none of them in `spans`."""
    barred = set(chat.spans_to_positions(case.prompt, spans))
    free = {token.position for token in case.prompt.tokens if token.segment == "user" and token.position not in barred}
    known: dict[int, list[str]] = {}

    def windows(length: int) -> list[str]:
        if length not in known:
            texts = []
            for start in sorted(free):
                window = range(start, start + length)
                found = chat.positions_to_spans(case.prompt, window) if free.issuperset(window) else ()
                if len(found) == 1:
                    texts.append(chat.span_text(case.report.messages, found[0]).strip())
            known[length] = [text for text in dict.fromkeys(texts) if text]
        return known[length]

    return windows


def token_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the ids of a text by itself, without special tokens around it."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []


def _plain(text: str) -> str:
    """Return a word in lower case without the marks around it."""
    return text.casefold().strip(".,:;!?\"'()[]") or text
