"""Spans of messages: from token positions, closed to words, cut out, replaced; nothing outside the text is taken."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import chat
from core.errors import ConfirmationError, ReportError, TokenMismatchError
from core.injection import inject
from core.text_spans import (
    close_to_words,
    delete_spans,
    last_user,
    positions_to_spans,
    replace_content,
    span_text,
    spans_to_positions,
    units_of,
)
from core.values import Message, Span
from tests.unit.test_chat import tokenizer_of, user


def test_positions_outside_the_prompt() -> None:
    """No silent dropping."""
    prompt = chat.render(tokenizer_of("byte-level"), [user("x")])
    for position in (-1, len(prompt.tokens)):
        with pytest.raises(TokenMismatchError):
            positions_to_spans(prompt, [position])


def test_adjacent_tokens_join_and_others_do_not() -> None:
    """Known answer: neighbouring tokens one span, a gap two spans, template tokens none."""
    prompt = chat.render(tokenizer_of("byte-level"), [user("01 23 x 45")])
    first = spans_to_positions(prompt, [Span(message=0, start=0, end=5)])
    last = spans_to_positions(prompt, [Span(message=0, start=7, end=10)])
    spans = positions_to_spans(prompt, [*last, 0, *first])
    assert spans == (Span(message=0, start=0, end=5), Span(message=0, start=7, end=10))


def S(start: int, end: int, message: int = 0) -> Span:
    """Return a span of message 0."""
    return Span(message=message, start=start, end=end)


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        ("one two three", [S(4, 6)], [S(4, 7)]),
        ("one two three", [S(3, 7)], [S(4, 7)]),
        ("one two three", [S(0, 1), S(5, 6)], [S(0, 7)]),
        ("one two three", [S(0, 1), S(9, 10)], [S(0, 3), S(8, 13)]),
        ("one two three", [S(3, 4)], []),
        ("one\u200btwo x", [S(0, 1)], [S(0, 7)]),
        ("a\n\nb", [S(0, 1), S(3, 4)], [S(0, 4)]),
        ("你好 世界", [S(0, 1)], [S(0, 2)]),
    ],
)
def test_close_to_words(text: str, spans: list[Span], expected: list[Span]) -> None:
    """Known answers: no outer white space, whole words, neighbours joined."""
    assert close_to_words([user(text)], spans) == tuple(expected)


@pytest.mark.parametrize("span", [S(0, 4), S(-1, 2), S(2, 2), S(2, 1), S(0, 1, 1), S(0, 1, -1)])
def test_spans_outside_the_text(span: Span) -> None:
    """Every function on spans refuses what does not lie in the text."""
    for function in (close_to_words, units_of, delete_spans):
        with pytest.raises(ConfirmationError):
            function([user("abc")], [span])


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        ("a BAD b", [S(2, 5)], "a b"),
        ("a BAD b", [S(1, 5)], "a b"),
        ("a BAD b", [S(2, 6)], "a b"),
        ("BAD a b", [S(0, 3)], "a b"),
        ("a b BAD", [S(4, 7)], "a b"),
        ("BAD", [S(0, 3)], ""),
        ("a\nBAD b", [S(2, 5)], "a\nb"),
        ("a BAD\n\nb", [S(2, 5)], "a\n\nb"),
        ("foBADbar", [S(2, 5)], "fobar"),
        ("a BAD b WORSE c", [S(2, 5), S(8, 13)], "a b c"),
        ("a BAD WORSE c", [S(6, 11), S(2, 5)], "a c"),
        ("  a BAD b  ", [S(4, 7)], "  a b  "),
    ],
)
def test_delete_spans(text: str, spans: list[Span], expected: str) -> None:
    """Known answers: of two runs of white space one stays, none at a new edge."""
    messages = [user(text), user("other")]
    assert delete_spans(messages, spans) == (user(expected), user("other"))


@given(
    st.text(max_size=40).filter(lambda text: bool(text.strip())),
    st.sampled_from(["BAD", "Current year: 2026", "👩‍👩‍👧"]),
    st.integers(0, 999),
    st.sampled_from(["random", "prefix", "suffix"]),
)
def test_deleting_an_injected_unit_gives_the_prompt_back(prompt: str, unit: str, seed: int, place: str) -> None:
    """Injection and deletion are inverse."""
    injected = inject(prompt, [unit], random.Random(seed), place)  # type: ignore[arg-type]
    ((start, end),) = injected.spans
    assert delete_spans([user(injected.text)], [S(start, end)])[0].content == prompt


def test_units_and_texts() -> None:
    """One unit a span; outer white space goes unless nothing else is there."""
    messages = [user("one two \n three")]
    assert units_of(messages, [S(3, 7), S(7, 10)]) == ("two", " \n ")
    assert span_text(messages, S(3, 7)) == " two"


def test_replace_and_last_user() -> None:
    """The other messages stay; the last user message is found behind later roles."""
    messages = [user("a"), user("b"), Message(role="assistant", content="c")]
    assert replace_content(messages, 1, "x") == (user("a"), user("x"), messages[2])
    assert messages[1].content == "b"
    assert last_user(messages) == 1
    with pytest.raises(ReportError):
        last_user([Message(role="system", content="s")])
