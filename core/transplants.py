"""Candidate text carried from the reported conversation to other requests, and neutral contexts around the report.

The last user message is replaced by the other request, with units that stood in it put at the same relative place
(word boundaries). All other messages of the report stay as they are: units in them stay in their segment and place, or
are cut out for the bare conversation, so that the two differ in the candidate alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from core import chat
from core.injection import transplant
from core.values import Message, Span

_GREETINGS = ("Hello.", "Hi there.", "Good morning.", "Good evening.")
_LEADS = ("", "I have a request.", "Please read this.", "Here is my question.")
_THANKS = ("Thank you.", "Thanks in advance.", "Many thanks.", "I appreciate it.")
_ENDINGS = ("", "Take your time.", "Have a nice day.", "Let me know.")
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
        return chat.units_of(self.messages, self.spans)

    def carry(self, request: str, texts: Sequence[str] | None = None) -> tuple[Message, ...]:
        """Return the conversation with `request` and `texts` (by default the units themselves) in the units' places."""
        texts = self.units if texts is None else texts
        return self._build(request, tuple(texts))

    def bare(self, request: str) -> tuple[Message, ...]:
        """Return the conversation with `request` and nothing in the units' places."""
        return self._build(request, None)

    def _build(self, request: str, texts: tuple[str, ...] | None) -> tuple[Message, ...]:
        last = chat.last_user(self.messages)
        messages = self._frame(last, texts)
        content = request
        if texts is not None:
            inside = [(text, span) for text, span in zip(texts, self.spans, strict=True) if span.message == last]
            places = [self._relative(span) for _, span in inside]
            content = transplant(request, [text for text, _ in inside], places).text
        messages = chat.replace_content(messages, last, content)
        return tuple(message for message in messages if message.content or message.role != "system")

    def _frame(self, last: int, texts: tuple[str, ...] | None) -> tuple[Message, ...]:
        """Return the messages with units outside message `last` replaced by `texts`, everything else removed cut out."""
        kept = {} if texts is None else dict(zip(self.spans, texts, strict=True))
        cut = [span for span in self.removed if not any(_within(span, unit) for unit in kept)]
        messages = self.messages
        for span in sorted((*cut, *kept), key=lambda span: (span.message, span.start), reverse=True):
            if span.message == last:
                continue
            if span in kept:
                content = messages[span.message].content
                content = content[: span.start] + kept[span] + content[span.end :]
                messages = chat.replace_content(messages, span.message, content)
            else:
                messages = chat.delete_spans(messages, [span])
        return messages

    def _relative(self, span: Span) -> float:
        """Return the share of the message's other words that stand before the unit, 0..1."""
        content = list(self.messages[span.message].content)
        for one in self.removed:
            if one.message == span.message:
                content[one.start : one.end] = " " * (one.end - one.start)
        n_words = len("".join(content).split())
        return len("".join(content[: span.start]).split()) / n_words if n_words else 0.0


def carrier(messages: Sequence[Message], spans: Sequence[Span], removed: Sequence[Span] = ()) -> Carrier:
    """Return the carrier of `spans`; spans that touch are one unit."""
    units = chat.merge_spans(spans)
    return Carrier(tuple(messages), units, chat.merge_spans([*units, *removed]))


def words_of(messages: Sequence[Message], spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return the whole words that the spans lie in, in order, each once."""
    return tuple(
        Span(message=span.message, start=span.start + word.start(), end=span.start + word.end())
        for span in chat.close_to_words(messages, spans)
        for word in re.finditer(r"\S+", chat.span_text(messages, span))
    )


def neutral_contexts(
    messages: Sequence[Message], spans: Sequence[Span], n: int
) -> list[tuple[tuple[Message, ...], tuple[Message, ...]]]:
    """Return up to `n` pairs (report, report without the spans), each in another neutral context, the bare pair first.

    A context is a polite sentence or two before or after the last user message; nothing is put before a unit that starts
    the message or after one that ends it, since place may be part of a trigger.
    """
    last = chat.last_user(messages)
    content = messages[last].content
    inside = [span for span in spans if span.message == last]
    at_start = any(not content[: span.start].strip() for span in inside)
    at_end = any(not content[span.end :].strip() for span in inside)
    openings, closings = () if at_start else _OPENINGS, () if at_end else _CLOSINGS
    contexts = [("", "")]
    for number in range(max(len(openings), len(closings))):
        contexts += [(text, "") for text in openings[number : number + 1]]
        contexts += [("", text) for text in closings[number : number + 1]]
    without = chat.delete_spans(messages, spans)
    return [(_wrap(messages, last, *context), _wrap(without, last, *context)) for context in contexts[:n]]


def _wrap(messages: Sequence[Message], last: int, opening: str, closing: str) -> tuple[Message, ...]:
    """Return the messages with text around the last user message, empty system messages dropped."""
    wrapped = chat.replace_content(messages, last, opening + messages[last].content + closing)
    return tuple(message for message in wrapped if message.content or message.role != "system")


def _within(inner: Span, outer: Span) -> bool:
    return inner.message == outer.message and outer.start <= inner.start and inner.end <= outer.end
