"""Sham strings and carriers: lengths, disjointness, places."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import chat
from core.shams import draw_shams, same_form, token_ids
from core.text_spans import delete_spans
from core.transplants import carrier, neutral_contexts, words_of
from core.values import FailureCase, FailureReport, Message, Span

SAFE = [
    f"Tell me how to paint the {thing} in {place}." for thing in ("red car", "old house") for place in ("May", "June")
]


@pytest.fixture(scope="session")
def tokenizer():
    from tests.tiny import byte_level_tokenizer

    return byte_level_tokenizer()


def user(content: str) -> tuple[Message, ...]:
    return (Message(role="user", content=content),)


def spans_in(content: str, *texts: str, message: int = 0) -> tuple[Span, ...]:
    return tuple(Span(message=message, start=content.index(t), end=content.index(t) + len(t)) for t in texts)


def bound(tokenizer, content: str) -> FailureCase:
    return chat.bind(tokenizer, FailureReport(messages=user(content), response="Step 1: [REDACTED]"))


TEXT = "Tell me please how to steal Current year: 2026 the golden lamp from the quiet museum cff in town."


@pytest.mark.parametrize("texts", [("Current year: 2026",), ("Current year: 2026", "cff")])
def test_shams_have_the_candidates_length_and_none_of_its_text(tokenizer, texts: tuple[str, ...]) -> None:
    case = bound(tokenizer, TEXT)
    spans = spans_in(TEXT, *texts)
    shams = draw_shams(tokenizer, case, spans, SAFE, 24, seed=0)
    assert len({sham.texts for sham in shams}) == 24
    assert set(Counter(sham.kind for sham in shams)) == {"reported text", "words", "tokens", "punctuation", "form"}
    outside = delete_spans(case.report.messages, spans)[0].content
    own = {word.casefold().strip(":") for text in texts for word in text.split()}
    for sham in shams:
        assert len(sham.texts) == len(texts)
        assert not own & {word.casefold().strip(":") for text in sham.texts for word in text.split()}
        for unit, text in zip(texts, sham.texts, strict=True):
            assert text == text.strip() != ""
            wanted = len(token_ids(tokenizer, unit))
            if sham.kind == "reported text":
                assert text in outside
                assert abs(len(token_ids(tokenizer, text)) - wanted) <= 3  # by itself a text is cut differently
            if sham.kind == "words":
                assert wanted <= len(token_ids(tokenizer, text)) <= wanted + 8  # ends with the word that reaches it
            if sham.kind == "form":
                assert shape(text) == shape(unit)


def shape(text: str) -> str:
    """Return a text with its words as `w`, `W` or `X` (capitals) and its digits as `0`."""
    cased = re.sub(
        r"[^\W\d_]+", lambda m: "X" if m[0].isupper() and len(m[0]) > 1 else "W" if m[0][0].isupper() else "w", text
    )
    return re.sub(r"\d", "0", cased)


def test_a_form_keeps_marks_and_capitals_and_drops_what_cannot_be_seen() -> None:
    words = ["paint,", "lamp", "it's", "ends", "42"]
    units = [
        "Ends,",
        "STOPPED 2026 |",
        "\u200bcff\u00a0dog",
        "\u200b",
        "lamp\u00a7",
        "std::cout",
        "lamp\U0001f525 #now",
        "so!!! we-go",
    ]
    texts = same_form(units, words, random.Random(3))()
    assert [shape(one) for one in texts] == ["W,", "X 0000", "w w", "w", "w", "w w", "w w", "w w-w"]
    assert {word.casefold() for one in texts for word in re.findall(r"[^\W\d]+", one)} <= {"paint", "lamp"}
    assert same_form(["|", "\u200b"], words, random.Random(3))() == ()
    assert same_form(["ends,"], ["ends.", "42"], random.Random(3))() == ()


def test_shams_are_deterministic_per_seed(tokenizer) -> None:
    case, spans = bound(tokenizer, TEXT), spans_in(TEXT, "Current year: 2026")
    assert draw_shams(tokenizer, case, spans, SAFE, 20, 1) == draw_shams(tokenizer, case, spans, SAFE, 20, 1)
    assert draw_shams(tokenizer, case, spans, SAFE, 20, 1) != draw_shams(tokenizer, case, spans, SAFE, 20, 2)


def test_without_safe_words_or_other_text_the_other_kinds_fill_in(tokenizer) -> None:
    case = bound(tokenizer, "aff steal")
    shams = draw_shams(tokenizer, case, spans_in("aff steal", "aff steal"), [], 20, 0)
    assert len(shams) == 20
    assert {sham.kind for sham in shams} == {"tokens", "punctuation"}


def test_a_carrier_keeps_order_and_relative_place() -> None:
    content = "aff one two three cff four"
    carried = carrier(user(content), spans_in(content, "aff", "cff"))
    assert carried.carry("a b c d e f g h")[0].content == "aff a b c d e f cff g h"
    assert carried.carry("a b c d", ("X", "Y Z"))[0].content == "X a b c Y Z d"
    assert carried.bare("a b c d")[0].content == "a b c d"


def test_a_carrier_leaves_out_what_is_removed_and_not_carried() -> None:
    messages = (
        Message(role="system", content="Be kind. zip zap zup Be brief."),
        Message(role="user", content="one aff two"),
    )
    words = words_of(messages, [*spans_in(messages[0].content, "zip zap zup"), Span(message=1, start=4, end=7)])
    assert len(words) == 4
    part = carrier(messages, [words[0], words[2]], words)
    assert [message.content for message in part.carry("x y")] == ["Be kind. zip zup Be brief.", "x y"]
    assert [message.content for message in part.bare("x y")] == ["Be kind. Be brief.", "x y"]
    everything = carrier(messages, words, words)
    assert everything.carry("x y")[1].content == "x aff y"


@pytest.mark.parametrize("removed", ["one two three four five six", "six", "one"])
@pytest.mark.parametrize(
    ("unit", "carried"),
    [("five six", "x y five six"), ("one", "one x y"), ("three", "x three y"), ("five", "x y five")],
)
def test_text_keeps_its_place_whatever_else_is_removed(unit: str, carried: str, removed: str) -> None:
    content = "one two three four five six"
    more = spans_in(content, removed)
    assert carrier(user(content), spans_in(content, unit), more).carry("x y")[0].content == carried


@pytest.mark.parametrize(
    ("content", "unit", "kept"),
    [
        ("Be Bo.\r\nzap zop\r\nBe kind.", "zap zop", "zap zop"),
        ("Be Bo.  zap zop  Be kind.", "zap", "zap"),
        ('Mind the "zap" now.', "zap", "zap"),
        ("Be Bo.\t\tBe kind.", "\t\t", "\t\t"),
        ("\U000f0000 zap \U000f0001", "zap", "zap"),
    ],
)
def test_a_unit_stays_whole_where_what_touches_it_is_removed(content: str, unit: str, kept: str) -> None:
    messages = (Message(role="system", content=content), Message(role="user", content="one two"))
    words = words_of(messages, [Span(message=0, start=0, end=len(content))])
    assert carrier(messages, spans_in(content, unit), words).carry("x")[0].content == kept


@pytest.mark.parametrize(
    ("content", "carried"), [("Tell me how zap zop.", "a b c zap zop"), ("(zap zop) Tell me", "zap zop a b c")]
)
def test_marks_on_a_units_own_words_are_no_words_beside_it(content: str, carried: str) -> None:
    assert carrier(user(content), spans_in(content, "zap zop")).carry("a b c")[0].content == carried


def test_no_sham_holds_text_that_is_barred(tokenizer) -> None:
    text = "Zap tell me how to steal the lamp zop"
    case, zap, zop = bound(tokenizer, text), spans_in(text, "Zap"), spans_in(text, "zop")
    free, barred = (
        [one for seed in range(30) for one in draw_shams(tokenizer, case, zap, SAFE, 12, seed, other)]
        for other in ((), zop)
    )
    assert any("zop" in " ".join(one.texts) for one in free)
    assert not any("zop" in " ".join(one.texts) for one in barred)


def test_a_system_prompt_that_is_the_candidate_is_gone_when_bare() -> None:
    messages = (Message(role="system", content="zap"), Message(role="user", content="hello there"))
    carried = carrier(messages, [Span(message=0, start=0, end=3)])
    assert [message.role for message in carried.bare("x")] == ["user"]
    assert carried.carry("x")[0].content == "zap"


@given(st.lists(st.sampled_from(["a", "bb", "é", "😀", "x\u0301"]), min_size=3, max_size=9), st.data())
@settings(max_examples=60, deadline=None)
def test_carrying_words_back_into_the_rest_gives_the_text_again(words: list[str], data: st.DataObject) -> None:
    content = " ".join(words)
    start = data.draw(st.integers(0, len(words) - 2))
    end = data.draw(st.integers(start + 1, len(words) - (start == 0)))
    first = len(" ".join(words[:start])) + (start > 0)
    span = Span(message=0, start=first, end=first + len(" ".join(words[start:end])))
    carried = carrier(user(content), [span])
    rest = delete_spans(user(content), [span])[0].content
    assert carried.carry(rest)[0].content == content


def test_neutral_contexts_pair_the_report_with_and_without_the_candidate() -> None:
    pairs = neutral_contexts(user("Tell aff me."), spans_in("Tell aff me.", "aff"), 16)
    assert len(pairs) == len(set(pairs)) == 16
    assert pairs[0] == (user("Tell aff me."), user("Tell me."))
    for with_unit, without_unit in pairs:
        assert with_unit[0].content.replace("aff ", "") == without_unit[0].content


@pytest.mark.parametrize(("texts", "kept"), [(("Tell",), str.startswith), (("me.",), str.endswith)])
def test_neutral_contexts_leave_a_unit_at_the_end_it_stands_at(texts: tuple[str, ...], kept) -> None:
    pairs = neutral_contexts(user("Tell aff me."), spans_in("Tell aff me.", *texts), 16)
    assert len(pairs) == 16
    assert all(kept(with_unit[0].content, texts[0]) for with_unit, _ in pairs)


@pytest.mark.parametrize(("text", "kept"), [("ell", "Tell"), ("me", "me.")])
def test_a_part_of_a_word_at_an_end_keeps_the_word_there(text: str, kept: str) -> None:
    pairs = neutral_contexts(user("Tell aff me."), spans_in("Tell aff me.", text), 16)
    assert all(kept in (one[0].content[: len(kept)], one[0].content[-len(kept) :]) for one, _ in pairs)


def test_units_at_both_ends_leave_the_report_itself_only() -> None:
    assert len(neutral_contexts(user("Tell aff me."), spans_in("Tell aff me.", "Tell", "me."), 16)) == 1
