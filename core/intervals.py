"""Intervals and paired tests for rates, and how a share is written. Nothing here draws random numbers."""

from collections.abc import Sequence
from math import comb, floor, sqrt

from core.values import Metric, Rate

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""
SURE_P = 0.05
"""A change with a smaller p-value is no matter of error. Source: convention; it goes with the 95 % of the intervals."""


def wilson(k: int, n: int) -> Rate:
    """Return `k / n` with its Wilson score 95 % interval; `n = 0` gives the interval [0, 1].

    Raises: ValueError when `k` is not in `0..n`.
    Source: Wilson 1927; Brown, Cai and DasGupta 2001, "Interval estimation for a binomial proportion".
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a rate")
    if n == 0:
        return Rate(value=None, k=0, n=0, low=0.0, high=1.0)
    p, z2 = k / n, Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return Rate(value=p, k=k, n=n, low=low, high=high)


def percent(share: float | None, digits: int | None = None) -> str:
    """Return a share as a percentage, a dash for none; without `digits`, with a decimal only where 0 or 100 would mislead."""
    if share is None:
        return "–"
    shown = 100 * share
    if digits is None:
        if 0 < shown < 0.05 or 99.95 < shown < 100:
            return "<0.1 %" if shown < 1 else ">99.9 %"
        digits = int(0 < shown < 1 or 99 < shown < 100)
    half_up = floor(shown * 10**digits + 0.5) / 10**digits  # as the page's tables round
    return f"{half_up:.{digits}f} %"


def difference_high(one: Rate, other: Rate) -> float:
    """Return the upper 95 % bound of `one` - `other`, two independent rates; 1.0 when either has no n.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10.
    """
    if one.value is None or other.value is None:
        return 1.0
    return one.value - other.value + sqrt((one.high - one.value) ** 2 + (other.value - other.low) ** 2)


def mcnemar(with_unit: Sequence[bool], without_unit: Sequence[bool]) -> float:
    """Return the exact two-sided McNemar p-value of paired outcomes (1.0 when no pair differs).

    Raises: ValueError when the lists differ in length.
    Source: McNemar 1947, exact form (binomial test of the discordant pairs).
    """
    return mcnemar_counts(*discordant(with_unit, without_unit))


def discordant(one: Sequence[bool], other: Sequence[bool]) -> tuple[int, int]:
    """Return how many pairs are true in `one` alone, and how many in `other` alone.

    Raises: ValueError when the lists differ in length.
    """
    if len(one) != len(other):
        raise ValueError("paired outcomes need equal lengths")
    pairs = list(zip(one, other, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


def mcnemar_counts(gained: int, lost: int) -> float:
    """Return the exact two-sided McNemar p-value from the numbers of discordant pairs of either kind."""
    n = gained + lost
    return min(1.0, 2 * sum(comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n)


def rose(before: Rate, after: Rate) -> bool:
    """Return whether a rate surely rose where no pairs were counted: the intervals do not meet."""
    return after.low > before.high


def moved(metric: Metric) -> int:
    """Return 1 where a rate surely rose, -1 where it surely fell, 0 else: by McNemar's exact test at `SURE_P` where the pairs were
    counted, in cases of older versions where the intervals do not meet.
    """
    before, after = metric.before, metric.after
    if not isinstance(before, Rate) or not isinstance(after, Rate):
        return 0
    gained, lost = metric.gained, metric.lost
    if gained is None or lost is None:
        return rose(before, after) - rose(after, before)
    return (gained > lost) - (gained < lost) if mcnemar_counts(gained, lost) < SURE_P else 0
