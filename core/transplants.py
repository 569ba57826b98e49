"""Candidate text carried from the reported conversation to other requests, and neutral contexts around the report.

The last user message is replaced by the other request, with units that stood in it put at the same relative place
(word boundaries). All other messages of the report stay as they are: units in them stay in their segment and place, or
are cut out for the bare conversation, so that the two differ in the candidate alone.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.injection import Injected, transplant
from core.rewrites import core_of
from core.text_spans import close_to_words, delete_spans, last_user, merge_spans, replace_content, span_text, units_of
from core.values import Message, Span

_GREETINGS = ("Hello.", "Hi there.", "Good morning.", "Good evening.")
_LEADS = ("", "I have a request.", "Please read this.", "Here is my question.")
_THANKS = ("Thank you.", "Thanks in advance.", "Many thanks.", "I appreciate it.")
_ENDINGS = ("", "Take your time.", "Have a nice day.", "Let me know.")
_INNER = str.maketrans({"\u201c": '"', "\u201d": '"'})
_PLAIN_SPACE = (" ", "\n", "\n\n", "")
_PRIVATE = range(0xF0000, 0x10FFFE)
"""Code points without a meaning, more than any prompt can hold. Source: Unicode 15, supplementary private use areas."""
_OPENINGS = tuple(f"{greeting} {lead}".strip() + " " for lead in _LEADS for greeting in _GREETINGS)
_CLOSINGS = tuple(f" {thanks} {ending}".rstrip() for ending in _ENDINGS for thanks in _THANKS)


@dataclass(frozen=True)
class Carrier:
    """Units at `spans` of the report, ready to be carried; text at `removed` (a superset) never comes along otherwise."""

    messages: tuple[Message, ...]
    spans: tuple[Span, ...]
    removed: tuple[Span, ...]

    @property
    def units(self) -> tuple[str, ...]:
        """Texts of the units, without outer white space."""
        return units_of(self.messages, self.spans)

    @property
    def movable(self) -> bool:
        """Whether all units stand in the last user message, so that their place in a request can change."""
        last = last_user(self.messages)
        return all(span.message == last for span in self.spans)

    def carry(self, request: str, texts: Sequence[str] | None = None) -> tuple[Message, ...]:
        """Return the conversation with `request` and `texts` (by default the units themselves) in the units' places."""
        texts = self.units if texts is None else texts
        return self._build(request, tuple(texts))

    def bare(self, request: str) -> tuple[Message, ...]:
        """Return the conversation with `request` and nothing in the units' places."""
        return self._build(request, None)

    def _build(self, request: str, texts: tuple[str, ...] | None) -> tuple[Message, ...]:
        last = last_user(self.messages)
        messages = self._frame(last, texts)
        content = request
        if texts is not None:
            inside = [(text, span) for text, span in zip(texts, self.spans, strict=True) if span.message == last]
            places = [self._relative(span) for _, span in inside]
            content = placed(transplant(request, [text for text, _ in inside], places))
        messages = replace_content(messages, last, content)
        return tuple(messages[at] for at in kept(self.messages, messages))

    def _frame(self, last: int, texts: tuple[str, ...] | None) -> tuple[Message, ...]:
        """Return the messages with units outside message `last` replaced by `texts`, everything else removed cut out."""
        kept = () if texts is None else self.spans
        cut = [piece for span in self.removed for piece in _outside(span, kept)]
        messages = self.messages
        mark = next(one for one in map(chr, _PRIVATE) if not any(one in message.content for message in messages))
        for span in sorted((*cut, *kept), key=lambda span: (span.message, span.start), reverse=True):
            if span.message == last:
                continue
            if span in kept:  # a unit of white space must not be joined with what is cut beside it
                content = messages[span.message].content
                messages = replace_content(messages, span.message, content[: span.start] + mark + content[span.end :])
            else:
                messages = without_spans(messages, [span])
        units = iter([text for span, text in zip(kept, texts or (), strict=True) if span.message != last])
        for number, message in enumerate(messages):
            if mark in message.content:
                content = "".join(next(units) if one == mark else one for one in message.content)
                messages = replace_content(messages, number, content)
        return messages

    def _relative(self, span: Span) -> float:
        """Return the share of the message's other words, those that no unit touches, that stand before the unit, 0..1."""
        content = list(self.messages[span.message].content)
        for one in (*self.spans, *close_to_words(self.messages, self.spans)):
            if one.message == span.message:
                content[one.start : one.end] = " " * (one.end - one.start)
        n_words = len("".join(content).split())
        return len("".join(content[: span.start]).split()) / n_words if n_words else 0.0


def _outside(span: Span, units: Sequence[Span]) -> list[Span]:
    """Return the parts of a span that lie in no unit."""
    parts, at = [], span.start
    for unit in units:
        if unit.message == span.message and unit.end > at and unit.start < span.end:
            parts.append(replace(span, start=at, end=unit.start))
            at = unit.end
    parts.append(replace(span, start=at))
    return [one for one in parts if one.start < one.end]


def carrier(messages: Sequence[Message], spans: Sequence[Span], removed: Sequence[Span] = ()) -> Carrier:
    """Return the carrier of `spans`; spans that touch are one unit."""
    units = merge_spans(spans)
    return Carrier(tuple(messages), units, merge_spans([*units, *removed]))


def placed(injected: Injected) -> str:
    """Return the text of a prompt with units; a unit of white space stands by itself, without the separators around it."""
    text = injected.text
    for start, end in reversed(injected.spans):
        if text[start:end].isspace():
            before, after = text[:start], text[end:]
            text = before.removesuffix(" ") + text[start:end] + after.removeprefix(" ")
    return text


def without_spans(messages: Sequence[Message], spans: Sequence[Span]) -> tuple[Message, ...]:
    """Return the messages without the text of the spans; white space between two words becomes one space."""
    for one in sorted(merge_spans(spans), key=lambda span: (span.message, span.start), reverse=True):
        content = messages[one.message].content
        left, right = content[: one.start], content[one.end :]
        if content[one.start : one.end].isspace() and left.strip() and right.strip():
            messages = replace_content(messages, one.message, f"{left.rstrip()} {right.lstrip()}")
        else:
            messages = delete_spans(messages, [one])
    return tuple(messages)


def kept(before: Sequence[Message], after: Sequence[Message]) -> list[int]:
    """Return the numbers of the messages that stay: all but system messages that lost all they held. One that was empty before stays,
    since a template may put words of its own in the place of one that is missing.
    """
    pairs = enumerate(zip(before, after, strict=True))
    return [at for at, (old, new) in pairs if new.content or new.role != "system" or not old.content]


def takes_all(messages: Sequence[Message], spans: Sequence[Span]) -> bool:
    """Return whether nothing of the last user message is left without the spans, where there was something."""
    last = last_user(messages)
    return bool(messages[last].content.strip()) and not without_spans(messages, spans)[last].content.strip()


def close_units(messages: Sequence[Message], spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return the spans widened to whole words, and the whole runs of white space at their ends.

    A plain single space or line break is no unit and is dropped; a tab, a run or a space of another kind is kept.
    """
    words = list(close_to_words(messages, spans))
    for one in merge_spans(spans):
        for white in re.finditer(r"\s+", messages[one.message].content):
            run = Span(message=one.message, start=white.start(), end=white.end())
            odd = white.group() not in _PLAIN_SPACE and touches(run, [one])
            if odd and not any(run.within(word) for word in words):
                words.append(run)
    return tuple(sorted(words, key=lambda span: (span.message, span.start)))


def words_of(messages: Sequence[Message], spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return the whole words and the unusual runs of white space that the spans lie in, in order, each once."""
    found: dict[Span, None] = {}
    for span in close_units(messages, spans):
        text = span_text(messages, span)
        for piece in re.finditer(r"\S+|\s+", text):
            inner = text.strip() and piece.group() in _PLAIN_SPACE
            if not inner:
                found[Span(message=span.message, start=span.start + piece.start(), end=span.start + piece.end())] = None
    return tuple(found)


def quoted(text: str) -> str:
    """Return foreign text as a sentence quotes it, so that only the last mark closes: redaction takes out what is quoted."""
    return f"\u201c{shown(text).translate(_INNER)}\u201d"


def shown(text: str, in_latin: bool = False) -> str:
    """Return a candidate's text with what cannot be seen or told apart as escapes: controls, unusual white space,
    zero-width characters, and letters of another script inside a word of Latin ones (`in_latin`: the text is in one).
    """

    def visible(word: str) -> str:
        latin = in_latin or any(c.isascii() and c.isalpha() for c in word)
        return "".join(
            c if c.isprintable() and not (latin and c.isalpha() and not _is_latin(c)) else _escape(c) for c in word
        )

    pieces = re.split(r"( +)", text)
    lone = not text.strip(" ")
    return "".join(
        (_escape(" ") * len(one) if lone else one) if one.startswith(" ") else visible(one) for one in pieces
    )


def _is_latin(character: str) -> bool:
    return unicodedata.name(character, "").startswith("LATIN")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def neutral_contexts(
    messages: Sequence[Message], spans: Sequence[Span], n: int
) -> list[tuple[tuple[Message, ...], tuple[Message, ...]]]:
    """Return up to `n` pairs (report, report without the spans), each in another neutral context, the bare pair first.

    A context is a polite sentence or two before or after the last user message; nothing is put before a unit whose word starts
    the message or after one whose word ends it, since place may be part of a trigger.
    """
    last = last_user(messages)
    content = messages[last].content
    inside = [span for span in (*spans, *close_to_words(messages, spans)) if span.message == last]
    at_start = any(not content[: span.start].strip() for span in inside)
    at_end = any(not content[span.end :].strip() for span in inside)
    openings, closings = () if at_start else _OPENINGS, () if at_end else _CLOSINGS
    contexts = [("", "")]
    for number in range(max(len(openings), len(closings))):
        contexts += [(text, "") for text in openings[number : number + 1]]
        contexts += [("", text) for text in closings[number : number + 1]]
    without = without_spans(messages, spans)
    stay = kept(messages, without)
    pairs = [[_wrap(one, last, *context) for one in (messages, without)] for context in contexts[:n]]
    return [(whole, tuple(cut[at] for at in stay)) for whole, cut in pairs]


def _wrap(messages: Sequence[Message], last: int, opening: str, closing: str) -> tuple[Message, ...]:
    """Return the messages with text around the last user message."""
    return replace_content(messages, last, opening + messages[last].content + closing)


def text_of(messages: Sequence[Message], spans: Sequence[Span]) -> str:
    """Return the units of a candidate in one line, to be read; never inserted into a prompt."""
    texts = []
    for span, unit in zip(spans, units_of(messages, spans), strict=True):
        content = messages[span.message].content
        beside = content[max(0, span.start - 1) : span.start] + content[span.end : span.end + 1]
        texts.append(shown(unit, any(c.isascii() and c.isalpha() for c in beside)))
    return " \u2026 ".join(texts)


def core_span(messages: Sequence[Message]) -> Span:
    """Return the core of the request in the last user message; empty where that has no words."""
    last = last_user(messages)
    core = core_of(messages[last].content)
    return Span(message=last, start=core.start, end=core.end)


def touches(one: Span, spans: Sequence[Span]) -> bool:
    """Return whether a span shares a character with any of the spans."""
    return any(one.message == span.message and one.start < span.end and span.start < one.end for span in spans)
