"""Spans of text in a conversation: from and to token positions, joined, widened to words, cut out.

A span is a half-open code point range of one message's raw content. What this does not do: render or tokenise (chat.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from core.errors import ConfirmationError, ReportError, TokenMismatchError
from core.values import Message, RenderedPrompt, Span


def positions_to_spans(prompt: RenderedPrompt, positions: Iterable[int]) -> tuple[Span, ...]:
    """Return the text of the tokens as spans, in order; touching ones are joined, template tokens have none.

    Raises: TokenMismatchError for a position outside the prompt.
    """
    spans = []
    for position in positions:
        if not 0 <= position < len(prompt.tokens):
            raise TokenMismatchError(
                f"Token position {position} is outside the prompt of {len(prompt.tokens)} tokens; reload the page and mark it again."
            )
        token = prompt.tokens[position]
        if token.message is not None and token.start is not None and token.end is not None:
            spans.append(Span(message=token.message, start=token.start, end=token.end))
    return merge_spans(spans)


def spans_to_positions(prompt: RenderedPrompt, spans: Iterable[Span]) -> tuple[int, ...]:
    """Return the positions of all tokens that share a character with a span, ascending."""
    wanted = merge_spans(spans)
    return tuple(
        token.position
        for token in prompt.tokens
        if token.start is not None
        and token.end is not None
        and any(one.message == token.message and one.start < token.end and token.start < one.end for one in wanted)
    )


def merge_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return the spans in order of message and place; overlapping and touching ones are joined, empty ones dropped."""
    merged: list[Span] = []
    for one in sorted(spans, key=lambda span: (span.message, span.start, span.end)):
        if one.start >= one.end:
            continue
        if merged and merged[-1].message == one.message and one.start <= merged[-1].end:
            merged[-1] = replace(merged[-1], end=max(merged[-1].end, one.end))
        else:
            merged.append(one)
    return tuple(merged)


def check_spans(messages: Sequence[Message], spans: Iterable[Span]) -> None:
    """Raise ConfirmationError unless every span lies in its message and holds at least one character."""
    for one in spans:
        if not 0 <= one.message < len(messages):
            raise ConfirmationError(
                f"A span names message {one.message}, outside the {len(messages)} there are (from 0); mark it again."
            )
        length = len(messages[one.message].content)
        if not 0 <= one.start < one.end <= length:
            raise ConfirmationError(
                f"Span {one.start}-{one.end} is empty or outside message {one.message}, which has {length} characters; mark it again."
            )


def close_to_words(messages: Sequence[Message], spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return the spans without outer white space, widened to whole words; only white space between two joins them.

    A word is a run of characters that are not white space. Spans of white space alone are dropped.
    """
    check = tuple(spans)
    check_spans(messages, check)
    closed: list[Span] = []
    for one in merge_spans(check):
        content = messages[one.message].content
        start, end = one.start, one.end
        while start < end and content[start].isspace():
            start += 1
        while start < end and content[end - 1].isspace():
            end -= 1
        if start == end:
            continue
        while start > 0 and not content[start - 1].isspace():
            start -= 1
        while end < len(content) and not content[end].isspace():
            end += 1
        before = closed[-1] if closed else None
        if before and before.message == one.message and not content[before.end : start].strip():
            closed[-1] = replace(before, end=max(before.end, end))
        else:
            closed.append(Span(message=one.message, start=start, end=end))
    return tuple(closed)


def span_text(messages: Sequence[Message], span: Span) -> str:
    """Return the characters of a span."""
    check_spans(messages, [span])
    return messages[span.message].content[span.start : span.end]


def units_of(messages: Sequence[Message], spans: Iterable[Span]) -> tuple[str, ...]:
    """Return one text a span, without outer white space unless there is nothing else."""
    texts = [span_text(messages, one) for one in spans]
    return tuple(text.strip() or text for text in texts)


def delete_spans(messages: Sequence[Message], spans: Iterable[Span]) -> tuple[Message, ...]:
    """Return the messages without the text of the spans.

    Of two runs of white space that meet, one is kept: the one that is not a single space, the left one when in doubt.
    A run that would newly stand at the edge of the text goes too.
    """
    check = tuple(spans)
    check_spans(messages, check)
    contents = [message.content for message in messages]
    for one in reversed(merge_spans(check)):
        left, right = contents[one.message][: one.start], contents[one.message][one.end :]
        words_left, words_right = left.rstrip(), right.lstrip()
        run_left, run_right = left[len(words_left) :], right[: len(right) - len(words_right)]
        if not left or not right:
            kept = ""
        elif run_left and run_right:
            kept = run_left if run_left != " " else run_right
        else:
            kept = run_left + run_right
        contents[one.message] = words_left + kept + words_right
    return tuple(replace(message, content=content) for message, content in zip(messages, contents, strict=True))


def replace_content(messages: Sequence[Message], index: int, content: str) -> tuple[Message, ...]:
    """Return the messages with another content in place `index`."""
    changed = list(messages)
    changed[index] = replace(changed[index], content=content)
    return tuple(changed)


def last_user(messages: Sequence[Message]) -> int:
    """Return the index of the last user message. Raises: ReportError when there is none."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "user":
            return index
    raise ReportError("the report has no user message: add the prompt that was answered")
