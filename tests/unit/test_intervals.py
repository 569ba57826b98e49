"""Wilson and McNemar: textbook numbers and limits; what counts as a change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.intervals import mcnemar, mcnemar_counts, moved, percent, wilson
from core.values import Metric


def test_wilson_known_answers() -> None:
    """R: `prop.test(k, n, correct = FALSE)$conf.int` for 8 of 10 and 0 of 20; 5 of 10 is symmetric about one half."""
    rate = wilson(8, 10)
    assert (rate.value, rate.k, rate.n) == (0.8, 8, 10)
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.4902, 0.9433)
    none = wilson(0, 20)
    assert none.low == 0.0
    assert round(none.high, 4) == 0.1611
    half = wilson(5, 10)
    assert half.low + half.high == pytest.approx(1.0)


def test_wilson_of_nothing_knows_nothing() -> None:
    """No trials: no value, the whole interval."""
    assert (wilson(0, 0).value, wilson(0, 0).low, wilson(0, 0).high) == (None, 0.0, 1.0)


@pytest.mark.parametrize(("k", "n"), [(-1, 3), (4, 3), (1, 0)])
def test_wilson_refuses_impossible_counts(k: int, n: int) -> None:
    """More successes than trials is a fault."""
    with pytest.raises(ValueError):
        wilson(k, n)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_its_rate_and_mirrors(n: int, data: st.DataObject) -> None:
    """The interval holds the rate, and k of n mirrors n - k of n."""
    k = data.draw(st.integers(0, n))
    rate, mirror = wilson(k, n), wilson(n - k, n)
    assert 0 <= rate.low <= k / n <= rate.high <= 1
    assert rate.low == pytest.approx(1 - mirror.high, abs=1e-12)


def test_mcnemar_known_answers() -> None:
    """Eight pairs gained, one lost: 2 * (1 + 9) / 2**9; all tied: 1; six gained, none lost: 2 / 2**6."""
    gained = [True] * 8 + [False] + [True] * 5
    before = [False] * 8 + [True] + [True] * 5
    assert mcnemar(gained, before) == pytest.approx(20 / 512)
    assert mcnemar([True, False], [True, False]) == 1.0
    assert mcnemar([True] * 6, [False] * 6) == pytest.approx(2 / 64)
    assert mcnemar(gained, before) == mcnemar(before, gained)


def test_mcnemar_needs_pairs() -> None:
    """Unpaired lists are a fault."""
    with pytest.raises(ValueError):
        mcnemar([True], [True, False])


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(gained: int, lost: int) -> None:
    """scipy's, which the formula stands in for."""
    from scipy.stats import binomtest

    expected = binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar_counts(gained, lost) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("before", "after", "pairs", "expected"),
    [
        ((2, 96), (10, 96), (8, 0), 1),  # p = 2 / 2**8; the intervals meet
        ((10, 96), (2, 96), (0, 8), -1),
        ((2, 96), (10, 96), (10, 2), 1),  # p = .039
        ((2, 96), (10, 96), (12, 4), 0),  # p = .077
        ((0, 96), (5, 96), (5, 0), 0),  # p = 2 / 2**5
        ((3, 96), (3, 96), (0, 0), 0),
        ((2, 96), (10, 96), (None, None), 0),  # of an older version: the intervals meet
        ((2, 96), (40, 96), (None, None), 1),
        ((40, 96), (2, 96), (None, None), -1),
        ((0, 0), (0, 0), (0, 0), 0),
    ],
)
def test_a_rate_moved_where_its_pairs_say_so(before, after, pairs, expected: int) -> None:
    gained, lost = pairs
    metric = Metric(name="", before=wilson(*before), after=wilson(*after), meaning="", gained=gained, lost=lost)
    assert moved(metric) == expected


def test_a_plain_value_is_not_said_to_move() -> None:
    assert moved(Metric(name="", before=0.0, after=1.0, meaning="")) == 0


def test_percent_rounds_as_the_tables_of_the_page() -> None:
    """A half goes up, in the browser and here."""
    assert [percent(k / 24) for k in (3, 9, 12, 15, 21)] == ["13 %", "38 %", "50 %", "63 %", "88 %"]
    assert percent(0.1225, 1) == "12.3 %"


def test_percent_does_not_round_a_failure_away() -> None:
    """0 % and 100 % mean exactly that."""
    assert [percent(x) for x in (0.0, 0.0002, 0.004, 0.5, 0.996, 0.9998, 1.0, None)] == [
        "0 %",
        "<0.1 %",
        "0.4 %",
        "50 %",
        "99.6 %",
        ">99.9 %",
        "100 %",
        "–",
    ]
