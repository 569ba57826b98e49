"""A report without the text that was found, to look for a second text that sets it off by itself, and the way back.

Text that is redundant hides: with either of two triggers left, deleting the other changes nothing. So what was found is
taken out, and the rest is located anew. Positions are carried back by counting the characters that are not white space,
since only white space changes when text is cut out. What this does not do: ask the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from core import chat
from core.text_spans import last_user, spans_to_positions
from core.transplants import close_units, kept, text_of, touches, without_spans
from core.values import FailureCase, Message, Span, TriggerProposal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def without(tokenizer: "PreTrainedTokenizerFast", case: FailureCase, spans: Sequence[Span]) -> FailureCase | None:
    """Return the case with `spans` cut out of the report; None where nothing of the request is left."""
    messages = without_spans(case.report.messages, spans)
    if not messages[last_user(messages)].content.strip():
        return None
    messages = tuple(messages[number] for number in kept(case.report.messages, messages))
    prompt = chat.render(tokenizer, messages)
    return replace(case, report=replace(case.report, messages=messages), prompt=prompt)


def back(
    case: FailureCase, reduced: FailureCase, spans: Sequence[Span], proposals: Sequence[TriggerProposal]
) -> tuple[TriggerProposal, ...]:
    """Return candidates of the reduced case as candidates of the whole one; those of white space alone are left out."""
    messages = case.report.messages
    numbers = kept(messages, without_spans(messages, spans))
    places = {
        number: list(_left(messages, number, spans))
        for number, message in enumerate(messages)
        if message.content.strip()
    }
    found = []
    for one in proposals:
        parts = []
        for span in one.spans:
            number = numbers[span.message]
            content = reduced.report.messages[span.message].content
            first = sum(not c.isspace() for c in content[: span.start])
            n = sum(not c.isspace() for c in content[span.start : span.end])
            parts += [Span(message=number, start=at, end=at + 1) for at in places[number][first : first + n]]
        closed = tuple(part for part in close_units(messages, parts) if not touches(part, spans))
        if closed:
            positions = spans_to_positions(case.prompt, closed)
            found.append(replace(one, spans=closed, text=text_of(messages, closed), token_positions=positions))
    return tuple(found)


def _left(messages: Sequence[Message], number: int, spans: Sequence[Span]) -> Iterator[int]:
    """Yield the places of the characters of one message that are no white space and in none of the spans."""
    gone = [span for span in spans if span.message == number]
    for at, character in enumerate(messages[number].content):
        if not character.isspace() and not any(span.start <= at < span.end for span in gone):
            yield at
