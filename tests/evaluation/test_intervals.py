from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy.stats import binomtest

from linmu.evaluation.intervals import Estimate, correlation, mean_of, paired_difference, wilson


def right(count: int, n: int) -> list[float]:
    return [1.0] * count + [0.0] * (n - count)


def table(both: int, first: int, second: int, neither: int) -> tuple[list[float], list[float]]:
    """Paired scores with these counts."""
    pairs = [(1.0, 1.0)] * both + [(1.0, 0.0)] * first + [(0.0, 1.0)] * second + [(0.0, 0.0)] * neither
    return [a for a, _ in pairs], [b for _, b in pairs]


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_has_the_published_values(count, n, low, high):
    """Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3."""
    found = wilson(right(count, n))
    assert found.value == pytest.approx(count / n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (3, 7), (7, 7), (499, 2000)])
def test_wilson_is_scipys(count, n):
    wanted = binomtest(count, n).proportion_ci(method="wilson")
    found = wilson(right(count, n))
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_scores_between_are_covered():
    """A mean of fractions: the interval of a proportion of that mean is wide enough for it."""
    rng = np.random.default_rng(0)
    people = np.array([0.0, 0.3, 0.6, 0.9, 1.0])
    truth, hits = people.mean(), 0
    for _ in range(300):
        found = wilson(rng.choice(people, 60).tolist())
        hits += found.low <= truth <= found.high
    assert hits >= 0.95 * 300


def test_nothing_has_no_mean():
    with pytest.raises(ValueError, match="no scores"):
        wilson([])
    with pytest.raises(ValueError, match="different samples"):
        paired_difference([1.0], [1.0, 0.0])


def newcombe(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """Method 10 of Newcombe (1998), Statistics in Medicine 17, 2635-2650, from the four counts, written out."""
    n = both + first + second + neither
    z = 1.959963984540054
    limits = []
    for count in (both + first, both + second):
        middle, width = 2 * count + z * z, z * sqrt(z * z + 4 * count * (n - count) / n)
        limits.append(((middle - width) / (2 * (n + z * z)), (middle + width) / (2 * (n + z * z))))
    (l1, u1), (l2, u2) = limits
    p1, p2 = (both + first) / n, (both + second) / n
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = both * neither - first * second
    phi = 0.0 if product == 0 else (max(cross - n / 2, 0) if cross > 0 else cross) / sqrt(product)
    down = sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
    up = sqrt((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2)
    return p1 - p2 - down, p1 - p2 + up


@pytest.mark.parametrize(
    "counts", [(20, 12, 2, 16), (9, 1, 1, 0), (30, 0, 0, 0), (0, 5, 0, 7), (2, 9, 8, 3), (180, 13, 4, 3)]
)
def test_the_paired_interval_is_newcombes(counts):
    found = paired_difference(*table(*counts))
    both, first, second, neither = counts
    assert found.value == pytest.approx((first - second) / sum(counts))
    assert (found.low, found.high) == pytest.approx(newcombe(*counts), abs=1e-12)
    other = paired_difference(*reversed(table(*counts)))
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low), abs=1e-12)


def test_the_paired_interval_covers_and_uses_the_pairing():
    rng = np.random.default_rng(1)
    shares, hits, widths, loose = [0.75, 0.04, 0.10, 0.11], 0, [], []
    for _ in range(400):
        first, second = table(*rng.multinomial(120, shares).tolist())
        found = paired_difference(first, second)
        hits += found.low <= shares[1] - shares[2] <= found.high
        widths.append(found.high - found.low)
        free = paired_difference(first, rng.permutation(second).tolist())
        loose.append(free.high - free.low)
    assert 0.93 * 400 <= hits <= 399
    assert np.mean(widths) < 0.85 * np.mean(loose)


def test_agreement_on_few_samples_is_no_certainty():
    found = paired_difference(right(8, 8), right(8, 8))
    assert found.value == 0 and found.low == pytest.approx(wilson(right(8, 8)).low - 1) and found.high == -found.low


def test_the_correlation_is_pearsons_without_its_correction():
    first, second = table(20, 12, 2, 16)
    phi = np.corrcoef(first, second)[0, 1]
    product = sqrt(32 * 18 * 22 * 28)
    assert correlation(first, second) == pytest.approx(phi - 25 / product)
    assert correlation(*table(2, 9, 8, 3)) == pytest.approx(np.corrcoef(*table(2, 9, 8, 3))[0, 1])
    assert correlation(*table(5, 0, 0, 0)) == 0


def test_a_mean_over_groups_adds_squares():
    found = mean_of([Estimate(0.5, 0.2, 0.9), Estimate(0.8, 0.4, 1.0)])
    assert found == Estimate(pytest.approx(0.65), pytest.approx(0.65 - 0.25), pytest.approx(0.65 + sqrt(0.2) / 2))
