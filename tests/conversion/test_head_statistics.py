"""What conversion measures on a teacher's heads, against plain loops over one query and one head at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from linmu.conversion import head_statistics
from linmu.conversion.head_statistics import RIDGE, SINK_TOKENS, SMALLEST_SHARE, HeadStatistics
from linmu.model.rotary import batch_tables
from tests.model.blocks import DIMS, PROMPT, SPANS, numpy_inputs, random_block, random_inputs, tables, tensors
from tests.model.reference import Reference, rotate_half, softmax

SETTINGS = [
    {},
    {"text_window": 3, "text_sinks": 2},
    {"text_window": 4, "local_swin": False},
    {"causal_windows": True, "text_window": 2},
]


def attention(block, u, cos, sin) -> np.ndarray:
    """[H, S, S] causal softmax attention with the projections of Flex-MA, which are the teacher's."""
    q, k, _ = Reference.of(block).project("flex", u)
    weights = np.zeros((DIMS.heads, len(u), len(u)))
    for head, i in np.ndindex(DIMS.heads, len(u)):
        keys = [rotate_half(k[j, head // (DIMS.heads // DIMS.kv_heads)], cos[j], sin[j]) for j in range(i + 1)]
        scores = np.array([rotate_half(q[i, head], cos[i], sin[i]) @ key for key in keys])
        weights[head, i, : i + 1] = softmax(scores * DIMS.head_dim**-0.5)
    return weights


def measured(block, u, heads_out, layout):
    """The statistics of one prompt."""
    statistics = HeadStatistics(block)
    embeddings = tables(torch.arange(u.shape[1])[None])
    statistics.add(block.flex, u, batch_tables(embeddings, len(u)), heads_out, None, layout)
    return statistics


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_statistics_are_the_plain_loops(settings, monkeypatch):
    monkeypatch.setattr(head_statistics, "ROWS", 7)
    block, u = random_block(1, **settings), random_inputs(PROMPT.length)
    heads_out = torch.randn(1, PROMPT.length, DIMS.heads * DIMS.head_dim, dtype=torch.float64)
    statistics = measured(block, u, heads_out, tensors(PROMPT, block.mmate))
    inputs = numpy_inputs(u)
    weights, mmate = attention(block, *inputs), block.mmate
    sees = Reference.of(block).sees(PROMPT.length, SPANS)
    vision = {token for positions, _ in SPANS for token in positions} if mmate.local_swin else set()
    distance, mass = np.zeros(DIMS.heads), np.zeros(DIMS.heads)
    far = np.zeros((PROMPT.length, DIMS.heads))
    for head, i, j in np.ndindex(*weights.shape):
        if not sees[i, j]:
            far[i, head] += weights[head, i, j]
            if j >= SINK_TOKENS:
                distance[head] += weights[head, i, j] * (i - j)
                mass[head] += weights[head, i, j]
    np.testing.assert_allclose(statistics.distance, distance, rtol=1e-5)
    np.testing.assert_allclose(statistics.mass, mass, rtol=1e-5)
    rates = statistics.rates(1.0, 1e6)
    np.testing.assert_allclose(rates, math.log(2) / np.maximum(distance / mass, 1.0), rtol=1e-5)
    slots = mmate.text_window + mmate.text_sinks
    used = [i for i in range(PROMPT.length) if i in vision or (mmate.text_window and i >= slots)]
    rows = np.concatenate([inputs[0][used], np.ones((len(used), 1))], 1)
    share = np.clip(far[used], SMALLEST_SHARE, 1 - SMALLEST_SHARE)
    gram = rows.T @ rows
    gram[: DIMS.hidden, : DIMS.hidden] += RIDGE * np.diag(gram)[: DIMS.hidden].mean() * np.eye(DIMS.hidden)
    expected = np.linalg.solve(gram, rows.T @ np.log(share / (1 - share)))
    weight, bias = statistics.alpha()
    np.testing.assert_allclose(weight, expected[:-1].T, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(bias, expected[-1], rtol=1e-3, atol=1e-5)
    square = heads_out[0].unflatten(-1, (DIMS.heads, -1)).square().mean((0, 2)).sqrt()
    np.testing.assert_allclose(statistics.output_rms, square, rtol=1e-5)


def test_a_head_that_never_looks_far_takes_the_others_mean():
    block = random_block(0, text_window=3)
    statistics = HeadStatistics(block)
    statistics.distance[:] = torch.tensor([10.0, 20.0, 0.0, 80.0, 9.0, 5.0])
    statistics.mass[:] = torch.tensor([2.0, 2.0, 0.0, 2.0, 0.5, 1.0])
    rates = statistics.rates(4.0, 30.0)
    expected = math.log(2) / np.array([5.0, 10.0, (5 + 10 + 40 + 5) / 4, 30.0, 15.0, 5.0])
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    statistics.mass[:] = 0.5
    assert statistics.rates(4.0, 30.0) is None and statistics.alpha() is None
