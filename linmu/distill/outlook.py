"""What more tokens would bring if the KL went on falling as it did: a straight line in log KL over log tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

LEAST_POINTS = 3
FARTHEST = 10.0  # times the tokens so far: what is farther off, nobody can tell from the slope


def kl_slope(tokens: Sequence[float], kls: Sequence[float]) -> float:
    """The median slope (Theil-Sen) of log KL over log tokens, both positive, of all pairs of at least two points."""
    x, y = np.log(np.asarray(tokens, np.float64)), np.log(np.asarray(kls, np.float64))
    slopes = [(y[j] - y[i]) / (x[j] - x[i]) for i, j in combinations(range(len(x)), 2) if x[i] != x[j]]
    return float(np.median(slopes)) if slopes else 0.0


def outlook(rows: Sequence[Mapping[str, float]], steps: int) -> str | None:
    """A line of text on the KL to expect, from a stage's rows of validation.csv; `steps` are the whole stage's.

    It says the KL at the end of the stage, and after how many tokens it is half of what it is now or, where that is too
    far, what it is after ten times the tokens so far. None before the third row with tokens, and where nothing falls.
    """
    points = [(row["trained_tokens"], row["kl"]) for row in rows if row.get("trained_tokens", 0) > 0 and row["kl"] > 0]
    if len(points) < LEAST_POINTS or rows[-1]["step"] <= 0:
        return None
    tokens, kl = points[-1]
    slope = kl_slope(*zip(*points, strict=True))
    if not slope < 0:
        return None
    end, far = steps / rows[-1]["step"], float(np.exp(min(np.log(2) / -slope, np.log(FARTHEST))))
    parts = [(end, "at the end of the stage")] if 1 < end <= FARTHEST else []
    parts += [(far, f"after {_count(tokens * far)} tokens")] if far > end or end > FARTHEST else []
    figures = [(_figure(kl * times**slope), when) for times, when in parts]
    told = [f"{figure} {when}" for figure, when in figures if figure != _figure(kl)]
    return f"KL {_figure(kl)} now; at this slope {', '.join(told)}" if told else None


def _figure(value: float) -> str:
    """Two digits, zeros at the end included."""
    return f"{value:#.2g}".removesuffix(".")


def _count(tokens: float) -> str:
    """A large number in two or three digits."""
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if tokens >= size:
            return f"{tokens / size:.3g} {unit}"
    return f"{float(f'{tokens:.2g}'):,.0f}"
