"""Inputs rounded row by row ("int8_rows"): what the grid promises, and that numpy's and torch's are one."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from linmu.formats.matrix_format import MatrixFormat
from linmu.quantize.rounding import round_input as round_numpy
from linmu.quantize.rounding import round_matrix
from linmu.step.torch_formats import code_scale, input_codes, round_input, row_grid

ROWS = MatrixFormat("int8", input="int8_rows")
ONE = torch.ones(())
SIZES = st.integers(-(10**6), 10**6).map(lambda n: n / 997)  # no range below what 1 / 255 of it can be


@given(arrays(np.float32, (3, 7), elements=SIZES))
def test_zero_is_exact_and_no_value_is_further_off_than_one_code(x):
    rows = torch.from_numpy(x)
    worth = code_scale(rows, ROWS, ONE)
    seen = round_input(rows, ROWS, ONE)
    assert bool((seen[rows == 0] == 0).all())
    # half a code, and half a code more at the ends of the range, which the zero point moves by up to as much
    assert bool(((seen - rows).abs() <= worth * 1.0001).all())
    inverse, zero = row_grid(rows)
    assert bool((input_codes(rows, ROWS, ONE) + zero).abs().le(128).all()) and bool((inverse > 0).all())


def test_numpy_and_torch_agree_but_for_ties():
    x = np.random.default_rng(5).standard_normal((41, 97)).astype(np.float32) * 3 + 1
    x[7] = 0
    wanted, worth = (f(torch.from_numpy(x), ROWS, ONE).numpy() for f in (round_input, code_scale))
    off = np.abs(round_numpy(x, ROWS, None) - wanted) / worth
    assert (off > 1e-3).mean() < 1e-3 and off.max() < 1.001


def test_rows_are_rounded_by_themselves():
    x = torch.randn(5, 33, generator=torch.Generator().manual_seed(2)) * torch.tensor([[1e-3], [1], [50], [0], [7]])
    together = round_input(x, ROWS, ONE)
    assert all(torch.equal(together[i], round_input(x[i], ROWS, ONE)) for i in range(len(x)))


def test_integers_are_those_of_blocks_and_scales_what_xnnpack_keeps():
    weight = np.random.default_rng(3).standard_normal((96, 11)).astype(np.float32)
    blocks, rows = (round_matrix(weight, MatrixFormat("int4", 32, kind)) for kind in ("int8_blocks", "int8_rows"))
    assert blocks.sha256 == rows.sha256
    np.testing.assert_array_equal(torch.from_numpy(blocks.scale).bfloat16().float().numpy(), rows.scale)
