"""Strict comparison: not finite fails first, then the worst case decides, never a mean.

Noise: how far the float32 reference moves when its sums are taken in another order. A tolerance is never narrower than
NOISE_ROOM times that: on an ill-conditioned model no float32 backend could be. It is reported whenever it matters, and
it has a ceiling: on a model noisier than that, parity cannot be shown and verify fails.
Where products are rounded to float16, other sums now and then fall on the other side of a rounding border, and behind
a few layers every rounding is a draw of its own: the twin then draws them (linmu.reference.eager). Whether the one
number that matters is moved in one call is chance, so noise counts at least one quantum (the next number's distance).
Units: a logits error is |difference| / std of the reference's logits; a state error is |difference| / largest value
of the same head of the reference (heads far smaller than their tensor: 1/1000 of its largest value).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from linmu.verification.golden import Projector, Snapshot, grouped

NOISE_ROOM = 4.0
WIDEST_LOGITS, WIDEST_STATE = 0.1, 1e-2  # noise never widens a tolerance beyond these
SMALL_GROUP = 1e-3
TINY = 1e-30


@dataclass(frozen=True)
class Tolerance:
    """Largest errors allowed, in the units above; embeddings are held to `logits` of their own std."""

    logits: float = 1e-4
    state: float = 1e-3

    def widened(self, noise: Sequence[float] | np.ndarray) -> Tolerance:
        """The tolerance where the reference's own (logits, state) noise is `noise`."""
        logits, state = (NOISE_ROOM * float(n) if np.isfinite(n) else 0.0 for n in noise)
        return Tolerance(max(self.logits, min(logits, WIDEST_LOGITS)), max(self.state, min(state, WIDEST_STATE)))


# What every bundle is held to on every backend: the reference rounds where the bundle does, whatever its precision. It
# stands here, not in the manifest: what is judged does not say how strictly.
TOLERANCE = Tolerance()


@dataclass(frozen=True)
class Worst:
    """The worst case of one check: relative error (inf when not finite), its tolerance, tensor, step and element."""

    error: float
    tolerance: float
    tensor: str
    step: int | None = None
    element: str = ""

    @property
    def ratio(self) -> float:
        """Error in units of the tolerance."""
        return self.error / self.tolerance

    @property
    def ok(self) -> bool:
        """Whether it is within the tolerance; NaN is not."""
        return bool(self.error <= self.tolerance)


@dataclass
class Meter:
    """Takes errors one by one; keeps the worst, the first out of tolerance, and the worst and a curve by kind."""

    worst: Worst | None = None
    first: Worst | None = None
    kinds: dict[str, Worst] = field(default_factory=dict)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether something was compared and all of it agreed."""
        return self.worst is not None and self.worst.ok

    def add(self, case: Worst, curve: str | None = None) -> None:
        """Take one error into account."""
        if self.worst is None or case.ratio > self.worst.ratio:
            self.worst = case
        if self.first is None and not case.ok:
            self.first = case
        if curve is not None and (curve not in self.kinds or case.ratio > self.kinds[curve].ratio):
            self.kinds[curve] = case
        if curve is not None and case.step is not None:
            points = self.curves.setdefault(curve, {})
            points[case.step] = max(points.get(case.step, 0.0), case.error)


def noise_between(
    logits: np.ndarray,
    state: Mapping[str, np.ndarray],
    other_logits: np.ndarray,
    other_state: Mapping[str, np.ndarray],
    quantum: float = 0.0,
) -> tuple[float, float]:
    """(logits, state) errors of a reference's reordered twin, in the units of the tolerances.

    quantum: relative distance of neighbouring numbers where products are rounded to fewer bits; at least that much.
    """
    meter = Meter()
    states_error(meter, other_state, state, Tolerance())
    assert meter.worst is not None
    return logits_noise(logits, other_logits, quantum), max(meter.worst.error, quantum)


def logits_noise(logits: np.ndarray, other: np.ndarray, quantum: float = 0.0) -> float:
    """The first of `noise_between`: of logits or embeddings alone."""
    least = quantum * float(np.abs(logits).max()) / max(float(logits.std(dtype=np.float64)), TINY)
    return max(logits_error(other, logits, Tolerance()).error, least)


def array_error(
    got: np.ndarray, expected: np.ndarray, scale: Any, tensor: str, tolerance: float, step: int | None = None
) -> Worst:
    """Worst element of |got - expected| / scale (scale broadcasts); a wrong shape or a value not finite is inf."""
    if got.shape != expected.shape:
        return Worst(np.inf, tolerance, tensor, step, f"shape {list(got.shape)} instead of {list(expected.shape)}")
    broken = ~np.isfinite(got)
    if broken.any():
        place = np.unravel_index(int(broken.argmax()), got.shape)
        return Worst(np.inf, tolerance, tensor, step, f"{got[place]} at {_place(place)}")
    error = np.abs(got.astype(np.float64) - expected) / scale
    if not np.isfinite(error).all():
        return Worst(np.inf, tolerance, tensor, step, "a reference that is not finite")
    place = np.unravel_index(int(error.argmax()), got.shape)
    values = f"{float(got[place]):.7g} instead of {float(expected[place]):.7g} at {_place(place)}"
    return Worst(float(error[place]), tolerance, tensor, step, values)


def logits_error(
    got: np.ndarray, expected: np.ndarray, tolerance: Tolerance, step: int | None = None, name: str = "logits"
) -> Worst:
    """Logits (or embeddings) in units of the reference's standard deviation."""
    return array_error(got, expected, max(float(expected.std(dtype=np.float64)), TINY), name, tolerance.logits, step)


def states_error(
    meter: Meter,
    got: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    tolerance: Tolerance,
    step: int | None = None,
) -> None:
    """Every element of every canonical state."""
    for name, wanted in expected.items():
        rows, array = grouped(name, wanted), got[name]
        scale = group_scale(np.abs(rows).max(axis=1))[:, None]
        if array.shape != wanted.shape:
            meter.add(array_error(array, wanted, 1.0, name, tolerance.state, step), "states")
        else:
            meter.add(array_error(grouped(name, array), rows, scale, name, tolerance.state, step), "states")


def snapshot_error(
    meter: Meter,
    got: Mapping[str, np.ndarray],
    expected: Snapshot,
    projector: Projector,
    tolerance: Tolerance,
    step: int | None = None,
) -> None:
    """Every canonical state through its projections, and element by element where the snapshot holds it in full."""
    for name, wanted in expected.projections.items():
        meter.add(_projected(got[name], name, wanted, expected.norms[name], projector, tolerance, step), "states")
    states_error(meter, got, expected.full, tolerance, step)


def _projected(array, name, wanted, norms, projector: Projector, tolerance: Tolerance, step) -> Worst:
    if not np.isfinite(array).all():
        return array_error(array, np.zeros_like(array), 1.0, name, tolerance.state, step)
    rows = grouped(name, array)
    if len(rows) != len(wanted):
        return Worst(np.inf, tolerance.state, name, step, f"{len(rows)} heads instead of {len(wanted)}")
    projections, _ = projector.rows(rows)
    return array_error(projections, wanted, group_scale(norms)[:, None], f"{name} (projected)", tolerance.state, step)


def group_scale(sizes: np.ndarray) -> np.ndarray:
    """The scale [G] of each group: its own size, but at least a thousandth of the largest."""
    return np.maximum(np.maximum(sizes.astype(np.float64), SMALL_GROUP * float(sizes.max(initial=0.0))), TINY)


def top_gap(logits: np.ndarray) -> float:
    """Distance of the two largest logits in units of their standard deviation."""
    second, first = np.partition(logits, -2)[-2:]
    return float((float(first) - float(second)) / max(float(logits.std(dtype=np.float64)), TINY))


def _place(index: tuple[Any, ...]) -> str:
    return "[" + ", ".join(str(int(i)) for i in index) + "]"
