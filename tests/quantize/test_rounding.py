"""Rounding against slow references written element by element in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.formats.matrix_format import MatrixFormat, part
from linmu.quantize.rounding import half_scale, relative_error, round_input, round_matrix
from linmu.step import torch_formats

FORMATS = [
    MatrixFormat("int8", input="int8"),
    MatrixFormat("int8", 16),
    MatrixFormat("int4", 16),
    MatrixFormat("int4", 32),
    MatrixFormat("fp8", input="fp8"),
]
SMALL = [m / 8 * 2.0**-6 for m in range(8)]
LARGE = [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)][:-1]  # the last code is NaN
E4M3 = sorted({sign * value for sign in (1, -1) for value in SMALL + LARGE})


def nearest_even(x: float) -> int:
    below = math.floor(x)
    if x - below != 0.5:
        return round(x)
    return below if below % 2 == 0 else below + 1


def slow_value(w: np.ndarray, format: MatrixFormat) -> np.ndarray:
    """W as its integers say, one element at a time."""
    rows, columns = w.shape
    largest = {"int8": 127, "int4": 7, "fp8": 448}[format.weights]
    out = np.zeros(w.shape)
    for i in range(rows):
        for j in range(columns):
            start = i - i % format.group if format.group else 0
            same = w if format.weights == "fp8" else w[start : start + (format.group or rows), j]
            scale = float(np.float16(np.abs(same).max() / largest))
            x = float(np.float32(w[i, j]) / np.float32(scale))
            if format.weights == "fp8":
                out[i, j] = min(E4M3, key=lambda v: abs(v - x)) * scale
            else:
                out[i, j] = max(-largest - (format.weights == "int4"), min(largest, nearest_even(x))) * scale
    return out


@pytest.mark.parametrize("format", FORMATS)
def test_values_are_the_slow_reference(format: MatrixFormat) -> None:
    w = np.random.default_rng(1).standard_normal((64, 5)).astype(np.float32)
    matrix = round_matrix(w, format, input_amax=3.0)
    np.testing.assert_allclose(matrix.value(), slow_value(w, format), rtol=1e-6, atol=1e-9)
    assert np.abs(matrix.value() - w).max() > 1e-4  # something was rounded


@pytest.mark.parametrize("format", FORMATS)
def test_torch_and_numpy_agree_to_the_bit(format: MatrixFormat) -> None:
    rng = np.random.default_rng(2)
    w, x = rng.standard_normal((32, 3)).astype(np.float32), rng.standard_normal((7, 32)).astype(np.float32) * 4
    matrix = round_matrix(w, format, input_amax=5.0)
    parts = {part("w", "q"): torch.from_numpy(matrix.q), part("w", "scale"): torch.from_numpy(np.array(matrix.scale))}
    np.testing.assert_array_equal(torch_formats.matrix_value(parts, "w", format).numpy(), matrix.value())
    if format.input:
        scale = torch.from_numpy(np.array(matrix.input_scale))
        mine = torch_formats.round_input(torch.from_numpy(x), format, scale).numpy()
        np.testing.assert_array_equal(mine, round_input(x, format, matrix.input_scale))


def test_inputs_beyond_the_calibrated_range_saturate() -> None:
    format, scale = MatrixFormat("int8", input="int8"), half_scale(np.array(1.0), 127)
    seen = round_input(np.array([[1e6, -1e6, 0.0]], np.float32), format, scale)
    np.testing.assert_array_equal(seen[0], np.array([127, -128, 0], np.float32) * scale)
    eight = MatrixFormat("fp8", input="fp8")
    assert round_input(np.array([[1e9]], np.float32), eight, np.float32(0.5))[0, 0] == 224.0


@settings(deadline=None)
@given(st.floats(0, 1e30))
def test_scales_are_float16_and_never_zero(amax: float) -> None:
    scale = half_scale(np.array([amax]), 127.0)
    assert scale[0] > 0 and np.isfinite(scale[0])
    assert np.float32(np.float16(scale[0])) == scale[0]


def test_columns_of_zeros_stay_zeros() -> None:
    for format in FORMATS:
        matrix = round_matrix(np.zeros((32, 2), np.float32), format, input_amax=1.0)
        assert not matrix.value().any()


def test_the_error_counts_the_rounded_input_and_its_factor() -> None:
    rng = np.random.default_rng(3)
    w, x = rng.standard_normal((32, 6)).astype(np.float32), rng.standard_normal((40, 32)).astype(np.float32)
    pre = np.linspace(0.5, 2, 32).astype(np.float32)
    format = MatrixFormat("int8", input="int8")
    matrix = round_matrix(w / pre[:, None], format, input_amax=float(np.abs(x * pre).max()), pre=pre)
    error = relative_error(x, w, matrix)
    assert 0.001 < error < 0.05
    clipped = round_matrix(w / pre[:, None], format, input_amax=0.1, pre=pre)
    assert relative_error(x, w, clipped) > 0.5


def test_the_hash_is_of_the_integers_alone() -> None:
    w = np.random.default_rng(4).standard_normal((32, 4)).astype(np.float32)
    first, second = (round_matrix(w, MatrixFormat("int4", 16)), round_matrix(w * 2, MatrixFormat("int4", 16)))
    assert first.sha256 == second.sha256  # twice the scale
    assert first.sha256 != round_matrix(w[:, ::-1], MatrixFormat("int4", 16)).sha256
