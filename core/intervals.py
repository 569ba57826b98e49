"""Intervals and paired tests for rates, and how a share is written. Nothing here draws random numbers."""

from math import sqrt

from core.values import Rate

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


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
    return f"{shown:.{digits}f} %"


def difference_high(one: Rate, other: Rate) -> float:
    """Return the upper 95 % bound of `one` - `other`, two independent rates; 1.0 when either has no n.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10.
    """
    if one.value is None or other.value is None:
        return 1.0
    return one.value - other.value + sqrt((one.high - one.value) ** 2 + (other.value - other.low) ** 2)


def mcnemar(with_unit: list[bool], without_unit: list[bool]) -> float:
    """Return the exact two-sided McNemar p-value of paired outcomes (1.0 when no pair differs).

    Raises: ValueError when the lists differ in length.
    Source: McNemar 1947, exact form (binomial test of the discordant pairs).
    """
    from scipy.stats import binomtest  # lazily: repair imports this module with torch and transformers alone

    if len(with_unit) != len(without_unit):
        raise ValueError("paired outcomes need equal lengths")
    gained = sum(a and not b for a, b in zip(with_unit, without_unit, strict=True))
    lost = sum(b and not a for a, b in zip(with_unit, without_unit, strict=True))
    return 1.0 if gained + lost == 0 else float(binomtest(gained, gained + lost, 0.5).pvalue)
