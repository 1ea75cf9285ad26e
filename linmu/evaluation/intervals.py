"""95% intervals in closed form: one mean, a paired difference of two means, an unweighted mean over groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, fmean

Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95% interval."""

    value: float
    low: float
    high: float


def wilson(scores: Sequence[float], z: float = Z95) -> Estimate:
    """The mean of scores in 0..1 with Wilson's score interval; raises ValueError without scores.

    For scores of 0 and 1 this is the usual interval of a proportion. Scores between (TextVQA) vary less than a
    proportion of the same mean, so that the interval is then a little wide, never too narrow.
    """
    n = len(scores)
    if not n:
        raise ValueError("no scores")
    mean = fmean(scores)
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return Estimate(mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half)))


def paired_difference(first: Sequence[float], second: Sequence[float], z: float = Z95) -> Estimate:
    """Mean of `first` minus mean of `second`, scores in 0..1 of the same samples, with Newcombe's paired interval.

    Newcombe (1998), method 10: the Wilson limits of both means, joined under their correlation, which is shrunk by a
    continuity correction. Unlike a bootstrap it does not collapse when both are right on all of a few samples.
    Raises ValueError when the lengths differ or are 0.
    """
    if len(first) != len(second):
        raise ValueError("scores of different samples")
    one, two = wilson(first, z), wilson(second, z)
    phi = correlation(first, second)
    difference = one.value - two.value
    down = _joined(one.value - one.low, two.high - two.value, phi)
    up = _joined(one.high - one.value, two.value - two.low, phi)
    return Estimate(difference, max(-1.0, difference - down), min(1.0, difference + up))


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """The phi coefficient of paired scores with Newcombe's correction; 0 where one of them never varies.

    Scores between 0 and 1 enter by their sums, which gives a coefficient nearer to 0 than theirs.
    """
    n = len(first)
    a, b = sum(first), sum(second)
    product = a * (n - a) * b * (n - b)
    if product <= 0:
        return 0.0
    numerator = n * sum(x * y for x, y in zip(first, second, strict=True)) - a * b
    if numerator > 0:
        numerator = max(numerator - n / 2, 0.0)
    return numerator / sqrt(product)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The unweighted mean of independent estimates; distances to the limits add as squares (MOVER)."""
    count = len(estimates)
    value = fmean(item.value for item in estimates)
    down = sqrt(sum((item.value - item.low) ** 2 for item in estimates)) / count
    up = sqrt(sum((item.high - item.value) ** 2 for item in estimates)) / count
    return Estimate(value, value - down, value + up)


def _joined(one: float, two: float, phi: float) -> float:
    return sqrt(max(0.0, one * one - 2 * phi * one * two + two * two))
