"""Local-Swin is dense attention under the window mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.model.local_swin import windowed_attention
from tests.layout.prompts import layout_of
from tests.model.blocks import numpy_inputs, random_block, random_inputs, run_pieces
from tests.model.reference import Reference, softmax

HEADS, GROUPS, DIM, SCALE = 6, 2, 5, 0.4


def only_second_branch(layer: int, **settings):
    """A block whose alpha is 0, and the reference's answer for it."""
    block = random_block(layer, **settings)
    block.alpha.weight.zero_()
    block.alpha.bias.fill_(-1e4)
    return block


def dense(block, u, spans) -> np.ndarray:
    """W_O of dense attention under the brute-force mask."""
    reference, (u, cos, sin) = Reference.of(block), numpy_inputs(u)
    heads = reference.attend(u, cos, sin, reference.sees(len(u), spans))
    return reference.linear("o_proj", heads.reshape(len(u), -1))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    "grids", [[(1, 5, 7)], [(3, 3, 4)], [(2, 2, 3)], [(5, 1, 1)], [(1, 1, 7), (3, 5, 1)], [(1, 4, 4), (2, 3, 5)]]
)
def test_ragged_grids_both_shifts(grids, layer, causal):
    layout = layout_of(2, *grids, 1)
    spans = [(span.positions.tolist(), span.grid) for span in layout.spans]
    block, u = only_second_branch(layer, causal_windows=causal), random_inputs(layout.length)
    y, _ = run_pieces(block, u, layout, [])
    vision = np.concatenate([positions for positions, _ in spans])
    np.testing.assert_allclose(y[0].numpy()[vision], dense(block, u, spans)[vision], rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    st.integers(0, 1),
)
def test_any_grid_and_window(grid, window, layer):
    layout = layout_of(1, grid, 1)
    sizes = dict(zip(("window_frames", "window_rows", "window_columns"), window, strict=True))
    block, u = only_second_branch(layer, **sizes), random_inputs(layout.length)
    spans = [(span.positions.tolist(), span.grid) for span in layout.spans]
    y, _ = run_pieces(block, u, layout, [])
    np.testing.assert_allclose(y[0, 1:-1].numpy(), dense(block, u, spans)[1:-1], rtol=0, atol=1e-12)


def test_padding_slots_touch_nothing():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 7, HEADS, DIM, generator=generator, dtype=torch.float64)
    k, v = (torch.randn(2, 7, GROUPS, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    segment = torch.tensor([[0, 0, 0, 1, 1, -1, -1], [0, 0, 1, 2, 2, 2, -1]])
    y = windowed_attention(q, k, v, segment, None, SCALE)
    assert y.isfinite().all()
    for row, place, head in np.ndindex(2, 7, HEADS):
        mates = np.flatnonzero(segment[row] == segment[row, place])
        group = head // (HEADS // GROUPS)
        share = softmax(SCALE * (k[row, mates, group] @ q[row, place, head]).numpy())
        np.testing.assert_allclose(y[row, place, head].numpy(), share @ v[row, mates, group].numpy(), atol=1e-12)
