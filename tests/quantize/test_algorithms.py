"""Scales of matrices with dead channels: inputs or weights that are always zero."""

from __future__ import annotations

import numpy as np
import pytest

from linmu.calibration.statistics import InputStatistics
from linmu.formats.presets import FP8, INT4_32, INT8, INT8_32, INT8_ROWS_SMOOTH
from linmu.quantize.algorithms import find_scales
from linmu.quantize.rounding import relative_error, round_matrix

pytest.importorskip("modelopt")

SCHEMES = [INT8, INT8_ROWS_SMOOTH, INT8_32, INT4_32, FP8]
ROWS, COLUMNS, SEEN = 64, 23, 51


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """W [in, out] and inputs [N, in]."""
    generator = np.random.default_rng(0)
    shapes = ((ROWS, COLUMNS), (SEEN, ROWS))
    weight, x = (generator.normal(size=shape).astype(np.float32) for shape in shapes)
    return weight, x


def kill(case: str, weight: np.ndarray, x: np.ndarray) -> list[int]:
    """Zero what the case names; returns the dead channels."""
    dead = {"input": [5], "weights": [5], "both": [5], "one of each": [5, 7], "a group": list(range(32))}[case]
    if case in ("input", "both", "a group"):
        x[:, dead] = 0
    if case in ("weights", "both", "a group"):
        weight[dead] = 0
    if case == "one of each":
        x[:, 5], weight[7] = 0, 0
    return dead


def scales(weight, x, scheme):
    seen = InputStatistics(ROWS)
    seen.add(x)
    return find_scales(weight, scheme, seen)


@pytest.mark.parametrize("case", ["input", "weights", "both", "one of each", "a group"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme.algorithm} {scheme.format.weights}")
def test_dead_channels_do_not_stop_an_algorithm(scheme, case):
    weight, x = drawn()
    found = scales(weight, x, scheme)
    dead = kill(case, weight, x)
    limited = scales(weight, x, scheme)
    assert np.isfinite(limited.amax).all() and (limited.amax >= 0).all()
    for value in (limited.pre, limited.input_amax):
        assert value is None or (np.isfinite(value).all() and np.all(np.asarray(value) > 0))
    errors = []
    for w, answer in ((drawn()[0], found), (weight, limited)):
        scaled = w if answer.pre is None else w / answer.pre[:, None]
        matrix = round_matrix(scaled, scheme.format, answer.amax, answer.input_amax, answer.pre)
        errors.append(relative_error(x, w, matrix))
    assert errors[1] < 1.3 * errors[0]
    if scheme.algorithm == "smoothquant":
        living = np.delete(limited.pre, dead)
        assert living.min() <= limited.pre[dead].min() and limited.pre[dead].max() <= living.max()


@pytest.mark.parametrize("scheme", [INT8, INT8_ROWS_SMOOTH], ids=["static", "by row"])
def test_the_living_channels_get_smoothquants_own_factors(scheme):
    """Of the formula in the paper: sqrt(largest weight / largest input), channel by channel."""
    weight, x = drawn()
    dead = kill("one of each", weight, x)
    found = scales(weight, x, scheme)
    with np.errstate(divide="ignore"):
        wanted = np.sqrt(np.abs(weight).max(1) / np.abs(x).max(0))
    np.testing.assert_allclose(np.delete(found.pre, dead), np.delete(wanted, dead), rtol=1e-5)
    np.testing.assert_allclose(found.amax, np.abs(weight / found.pre[:, None]).max(0), rtol=1e-5)
    if found.input_amax is not None:
        np.testing.assert_allclose(found.input_amax, np.abs(x * found.pre).max(), rtol=1e-5)


def test_an_input_that_is_never_anything_is_left_as_it_is():
    weight, x = drawn()
    found = scales(weight, 0 * x, INT8_ROWS_SMOOTH)
    assert found.pre is None and np.isfinite(found.amax).all()
