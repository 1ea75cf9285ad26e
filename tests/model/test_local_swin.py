"""Local-Swin is dense attention under the window mask; the text window is a dense causal band."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.model.local_swin import sliding_attention, windowed_attention
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


@pytest.mark.parametrize("window", [1, 3, 4, 16])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_text_window_is_a_causal_band_in_any_pieces(length, window):
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(2, length, HEADS, DIM, generator=generator, dtype=torch.float64)
    k, v = (torch.randn(2, length, GROUPS, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    valid = torch.arange(length) >= torch.tensor([[0], [length // 2]])
    expected = np.zeros((2, length, HEADS, DIM))
    for row, i, head in np.ndindex(2, length, HEADS):
        keys = [j for j in range(max(0, i - window + 1), i + 1) if valid[row, j]]
        group = head // (HEADS // GROUPS)
        if keys:
            share = softmax(SCALE * (k[row, keys, group] @ q[row, i, head]).numpy())
            expected[row, i, head] = share @ v[row, keys, group].numpy()
    for cut in range(length + 1):
        empty = torch.zeros(2, GROUPS, window, DIM, dtype=torch.float64)
        past = (empty, empty, torch.zeros(2, window, dtype=torch.bool))
        found = []
        for part in (slice(0, cut), slice(cut, length)):
            if part.start < part.stop:
                y, past = sliding_attention(q[:, part], k[:, part], v[:, part], valid[:, part], past, SCALE)
                found.append(y)
        y = torch.cat(found, 1)[valid]
        np.testing.assert_allclose(y.numpy(), expected[valid.numpy()], rtol=0, atol=1e-12)
        kept = min(length, window)
        assert torch.equal(past[0][:, :, window - kept :], k[:, length - kept :].transpose(1, 2))
        assert torch.equal(past[2][:, window - kept :], valid[:, length - kept :])
