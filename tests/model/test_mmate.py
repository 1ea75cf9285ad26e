"""The block against the float64 reference: every setting, every cut of a prompt, padding, leaks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from linmu.config import RULES
from linmu.layout import cut_points
from linmu.model.mmate import AttentionSizes
from tests.layout.prompts import TEXT, layout_of
from tests.model.blocks import (
    DIMS,
    PROMPT,
    SPANS,
    batch_tensors,
    numpy_inputs,
    random_block,
    random_inputs,
    run_pieces,
    tables,
    tensors,
)
from tests.model.reference import Reference

SETTINGS = {
    "default": {},
    "kv_head": {"decay": "kv_head"},
    "delta": {"rule": "gated_delta"},
    "delta_kv_head": {"rule": "gated_delta", "decay": "kv_head", "taps": 2},
    "delta_skip_sinks": {"rule": "gated_delta", "skip": True, "text_window": 3, "text_sinks": 2},
    "delta_no_rope_raster": {"rule": "gated_delta", "rope": False, "scan": "raster"},
    "skip": {"skip": True},
    "skip_kv_head": {"skip": True, "decay": "kv_head"},
    "two_taps": {"taps": 2},
    "six_taps": {"taps": 6},
    "no_rope": {"rope": False},
    "raster": {"scan": "raster"},
    "no_backward": {"backward": False},
    "no_swin": {"local_swin": False},
    "causal": {"causal_windows": True},
    "text_window": {"text_window": 3},
    "long_text_window": {"text_window": 64},
    "sinks": {"text_window": 3, "text_sinks": 2},
    "shared_window": {"text_window": 3, "text_sinks": 1, "text_window_projections": "shared"},
    "text_window_only": {"text_window": 4, "local_swin": False, "backward": False},
    "one_token_windows": {"window_frames": 1, "window_rows": 1, "window_columns": 1},
}
STATES = ("conv", "recurrent")
DELTA = {"rule": "gated_delta"}
DELTA_WINDOW = {"rule": "gated_delta", "decay": "kv_head", "text_window": 3}


def assert_same(got: torch.Tensor, expected, tolerance: float = 1e-10) -> None:
    np.testing.assert_allclose(got.numpy(), np.asarray(expected), rtol=0, atol=tolerance)


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_block_is_the_reference(settings, layer):
    block, u = random_block(layer, **settings), random_inputs(PROMPT.length)
    y, state = run_pieces(block, u, PROMPT, [])
    expected, last = Reference.of(block).forward(*numpy_inputs(u), SPANS)
    assert np.abs(expected).max() > 0.1
    assert_same(y[0], expected)
    for name in STATES:
        assert_same(state[name][0], last[name])


@pytest.mark.parametrize(
    "dims",
    [
        AttentionSizes(hidden=10, heads=5, kv_heads=5, head_dim=6),
        AttentionSizes(hidden=9, heads=7, kv_heads=1, head_dim=2, qkv_bias=True),
        AttentionSizes(hidden=6, heads=1, kv_heads=1, head_dim=8, o_bias=True),
    ],
)
@pytest.mark.parametrize("decay", ["query_head", "kv_head"])
@pytest.mark.parametrize("rule", RULES)
def test_other_sizes(dims, decay, rule):
    block, u = random_block(3, dims, decay=decay, rule=rule), random_inputs(PROMPT.length, hidden=dims.hidden)
    cos, sin = tables(torch.arange(PROMPT.length), dims.head_dim)
    y, state = block(u, (cos[None], sin[None]), None, None, tensors(PROMPT, block.mmate))
    expected, last = Reference.of(block).forward(u[0].numpy(), cos.numpy(), sin.numpy(), SPANS)
    assert_same(y[0], expected)
    assert_same(state["recurrent"][0], last["recurrent"])


@pytest.mark.parametrize(
    "settings",
    [{}, DELTA, {"decay": "kv_head", "taps": 6}, {"text_window": 3}, {"skip": True, "taps": 2}, DELTA_WINDOW],
)
def test_every_legal_cut_gives_the_same_outputs_and_states(settings):
    block, u = random_block(1, **settings), random_inputs(PROMPT.length)
    cuts = cut_points(PROMPT)[:-1]
    assert {1, 2, 3, 15, 16}.issubset(cuts)  # inside text, and on both sides of the first span
    expected, last = Reference.of(block).forward(*numpy_inputs(u), SPANS)
    _, whole = run_pieces(block, u, PROMPT, [])
    for pieces in [*([cut] for cut in cuts), cuts, cuts[::2]]:
        y, state = run_pieces(block, u, PROMPT, pieces)
        assert_same(y[0], expected)
        assert state.keys() == whole.keys()
        for name, value in whole.items():
            assert_same(state[name], value)
        for name in STATES:
            assert_same(state[name][0], last[name])


@pytest.mark.parametrize("decay", ["query_head", "kv_head"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [1, 4, 5, 6, 20])  # 1, L-1, L, L+1, 3L+5 with L = 5
def test_prefill_then_steps_on_text(length, decay, rule):
    block, u = random_block(2, decay=decay, rule=rule), random_inputs(length)
    layout = layout_of(length)
    expected, last = Reference.of(block).forward(*numpy_inputs(u), [])
    for prefill in {0, 1, length // 2, length - 1, length}:
        y, state = run_pieces(block, u, layout, [n for n in range(max(prefill, 1), length)])
        assert_same(y[0], expected)
        for name in STATES:
            assert_same(state[name][0], last[name])


@pytest.mark.parametrize("settings", [{}, DELTA, {"text_window": 3}, {"decay": "kv_head", "skip": True}, DELTA_WINDOW])
def test_left_padding_and_batching_change_nothing(settings):
    block = random_block(3, **settings)
    layouts = [PROMPT, TEXT, layout_of(2, (1, 2, 5), 1), layout_of((2, 2, 1), 7)]
    length = PROMPT.length + 2
    offsets = [length - layout.length for layout in layouts]
    u = random_inputs(length, batch=4, seed=5)  # noise on the padding
    positions = torch.stack([torch.arange(length) - offset for offset in offsets]).clamp_min(0)
    valid = torch.arange(length) >= torch.tensor(offsets)[:, None]
    y, state = block(u, tables(positions), None, valid, batch_tensors(layouts, offsets, length, block.mmate))
    assert y.isfinite().all()
    for row, (layout, offset) in enumerate(zip(layouts, offsets, strict=True)):
        alone, last = run_pieces(block, u[row : row + 1, offset:], layout, [])
        assert_same(y[row, offset:], alone[0], 1e-12)
        after = random_inputs(1, seed=row)
        ahead = tables(torch.tensor([[layout.length]]))
        batched = {name: value[row : row + 1] for name, value in state.items()}
        assert_same(block(after, ahead, batched)[0], block(after, ahead, last)[0], 1e-12)


def dependence(blocks, u, layout) -> np.ndarray:
    """[S,S] bool: whether output i of a residual stack of blocks changes when input j does, from S perturbed copies."""
    length = u.shape[1]
    rows = u.repeat(length + 1, 1, 1)
    rows[torch.arange(length), torch.arange(length)] += random_inputs(length, seed=99)[0]
    index = batch_tensors([layout] * (length + 1), [0] * (length + 1), length, blocks[0].mmate)
    for block in blocks:
        rows = rows + block(rows, tables(torch.arange(length)[None].expand(length + 1, -1)), None, None, index)[0]
    change = (rows[:-1] - rows[-1]).abs().amax(-1).T.numpy()  # [output i, input j]
    assert not ((change > 1e-13) & (change < 1e-10)).any()  # nothing between rounding and a real change
    return change > 1e-10


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("settings", [{}, DELTA, {"text_window": 3}, {"decay": "kv_head", "taps": 6}])
def test_no_token_sees_the_future_outside_its_span(settings, layers):
    blocks = [random_block(layer, **settings) for layer in range(layers)]
    found = dependence(blocks, random_inputs(PROMPT.length), PROMPT)
    span_of = {token: n for n, (positions, _) in enumerate(SPANS) for token in positions}
    extents = [range(positions[0], positions[-1] + 1) for positions, _ in SPANS]
    for i in range(PROMPT.length):
        for j in range(PROMPT.length):
            one_span = i in span_of and span_of.get(j) == span_of[i]
            inside = any(i in extent and j in extent for extent in extents)
            if j > i and not inside:
                assert not found[i, j], f"token {i} sees {j}"
            if j <= i and layers > 1 or one_span:  # the scan order hides nothing of one's own span
                assert found[i, j], f"token {i} does not see {j}"
            if layers == 1 and j > i and not one_span:
                assert not found[i, j], f"token {i} sees {j} in one layer"


@pytest.mark.parametrize("rule", RULES)
def test_text_inside_a_span_learns_of_later_frames_in_the_second_layer(rule):
    positions, _ = SPANS[1]
    stamp = next(token for token in range(positions[0], positions[-1]) if token not in positions)
    u = random_inputs(PROMPT.length)
    one = dependence([random_block(0, rule=rule)], u, PROMPT)
    two = dependence([random_block(layer, rule=rule) for layer in range(2)], u, PROMPT)
    assert not one[stamp, positions[-1]] and two[stamp, positions[-1]]


@pytest.mark.parametrize("settings", [{"backward": False}, {"local_swin": False}])
def test_each_branch_alone_makes_a_span_bidirectional(settings):
    blocks = [random_block(layer, **settings) for layer in range(4)]
    found = dependence(blocks, random_inputs(PROMPT.length), PROMPT)
    for positions, _ in SPANS:
        assert found[positions[0], positions[-1]]


def test_without_both_branches_raster_scans_are_causal():
    blocks = [random_block(layer, backward=False, local_swin=False, scan="raster") for layer in range(3)]
    found = dependence(blocks, random_inputs(PROMPT.length), PROMPT)
    np.testing.assert_array_equal(found, np.tril(np.ones_like(found)))


@pytest.mark.parametrize("rule", RULES)
def test_a_later_image_and_its_number_change_nothing_before_it(rule):
    u = random_inputs(PROMPT.length)
    for layer in range(4):
        block = random_block(layer, rule=rule)
        whole, _ = run_pieces(block, u, PROMPT, [])
        for stop in (15, 17):  # before and after the text behind the first image
            first = layout_of(3, (1, 3, 4), stop - 15)
            alone, _ = run_pieces(block, u[:, :stop], first, [])
            assert_same(whole[:, :stop], alone)


def test_gates_and_shares_of_text_are_fixed():
    block, u = random_block(0), random_inputs(TEXT.length)
    before, _ = run_pieces(block, u, TEXT, [])
    with torch.no_grad():
        for gate in (block.gate_forward, block.gate_backward, block.alpha):
            gate.bias.add_(3.0)
    after, _ = run_pieces(block, u, TEXT, [])
    assert torch.equal(before, after)


@pytest.mark.parametrize("rule", RULES)
def test_a_row_of_one_token_images(rule):
    layout = layout_of((1, 1, 1), (1, 1, 1), 1, (1, 1, 2))
    spans = [(span.positions.tolist(), span.grid) for span in layout.spans]
    for layer in range(2):
        block, u = random_block(layer, taps=3, rule=rule), random_inputs(layout.length)
        y, _ = run_pieces(block, u, layout, [])
        assert_same(y[0], Reference.of(block).forward(*numpy_inputs(u), spans)[0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_blocks_stay_near_the_reference(dtype, rule):
    block = random_block(1, rule=rule).to(dtype)
    u = random_inputs(PROMPT.length).to(dtype)
    cos, sin = (table.to(dtype) for table in tables(torch.arange(PROMPT.length)[None]))
    y, state = block(u, (cos, sin), None, None, tensors(PROMPT, block.mmate))
    assert y.dtype == dtype and state["recurrent"].dtype == torch.float32 and state["conv"].dtype == dtype
    expected, _ = Reference.of(block).forward(
        u[0].double().numpy(), *(table[0].double().numpy() for table in (cos, sin)), SPANS
    )
    error = np.linalg.norm(y[0].double().numpy() - expected) / np.linalg.norm(expected)
    assert error < {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_backward_scan_says_nothing_about_a_lone_token(dtype, rule):
    # Its only key is its own, which is taken out: what rounding leaves must not be blown up by the head norm.
    dims = replace(DIMS, qk_norm=False)
    block = random_block(0, dims, local_swin=False, rule=rule).double()
    with torch.no_grad():
        block.flex.k_proj.weight.mul_(20)
    layout, u = layout_of(2, (1, 1, 1), 1), random_inputs(4)
    expected, _ = Reference.of(block.to(dtype)).forward(*numpy_inputs(u.to(dtype).double()), [([2], (1, 1, 1))])
    cos, sin = (table.to(dtype) for table in tables(torch.arange(4)[None]))
    y, _ = block(u.to(dtype), (cos, sin), None, None, tensors(layout, block.mmate))
    with torch.no_grad():
        block.gate_backward.bias.fill_(-1e4)
    closed, _ = block(u.to(dtype), (cos, sin), None, None, tensors(layout, block.mmate))
    assert (y - closed).abs().max() < 1e-2 * np.abs(expected).max()
