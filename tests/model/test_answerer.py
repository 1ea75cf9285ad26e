"""Draws follow the softmax and depend on a row's seed alone; tests/evaluation and tests/distill generate with them."""

from __future__ import annotations

import torch

from linmu.model.answerer import SeededDraw

LOGITS = torch.tensor([0.3, -1.7, 2.1, -torch.inf, 0.9])


def draws(seeds, steps, logits=LOGITS):
    """[seeds, steps] token ids."""
    draw = SeededDraw(seeds)
    rows = logits.expand(len(seeds), -1)
    return torch.stack([draw(None, rows).argmax(-1) for _ in range(steps)], 1)


def test_draws_follow_the_softmax():
    count = 20_000
    found = torch.bincount(draws(range(100), count // 100).flatten(), minlength=5) / count
    expected = LOGITS.double().softmax(-1)
    assert found[3] == 0
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()


def test_a_row_is_drawn_alike_in_any_batch():
    together = draws([7, 3, 11], 30)
    assert torch.equal(together[1:2], draws([3], 30)) and torch.equal(together[[2, 0]], draws([11, 7], 30))
    assert len({tuple(row.tolist()) for row in together}) == 3
    assert torch.equal(together, draws([7, 3, 11], 30, LOGITS.half()))  # noise in float32
