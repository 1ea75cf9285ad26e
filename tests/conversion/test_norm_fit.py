"""Norm scales by least squares: no other scales leave less error, and known ones are found again."""

from __future__ import annotations

import pytest
import torch

from linmu.conversion.layer_call import LayerCall
from linmu.conversion.norm_fit import NormFit, directions
from tests.model.blocks import PROMPT, random_block, random_inputs, tables, tensors


def fitted(block, target_block, prompts, layouts):
    """A NormFit of `block` to the heads that `target_block` gives on the prompts, and those calls."""
    fit, calls = NormFit(block), []
    for u, layout in zip(prompts, layouts, strict=True):
        embeddings = tables(torch.arange(u.shape[1])[None])
        mixed, local, share, _ = target_block.branches(u, embeddings, None, None, layout)
        heads = mixed if local is None else share * mixed + (1 - share) * local
        calls.append(LayerCall(u, embeddings, heads.flatten(2), heads.flatten(2), None))
        fit.add(calls[-1], layout)
    return fit, calls


@pytest.mark.parametrize("settings", [{}, {"text_window": 4, "text_sinks": 1}, {"backward": False}], ids=str)
def test_known_norms_are_found_again(settings, monkeypatch):
    monkeypatch.setattr("linmu.conversion.norm_fit.PRIOR_TOKENS", 1e-9)
    block, target = random_block(2, **settings), random_block(2, **settings)
    for direction in directions(block):
        direction.norm.weight.fill_(0.3)
    layout = tensors(PROMPT, block.mmate)
    fit, _ = fitted(block, target, [random_inputs(PROMPT.length), random_inputs(17, seed=3)], [layout, None])
    fit.use()
    for own, other in zip(directions(block), directions(target), strict=True):
        torch.testing.assert_close(own.norm.weight, other.norm.weight, rtol=1e-6, atol=1e-6)


def test_no_other_norms_leave_less_error(monkeypatch):
    monkeypatch.setattr("linmu.conversion.norm_fit.PRIOR_TOKENS", 1e-9)
    block, target = random_block(1, text_window=3), random_block(1, seed=5, text_window=3)
    layout = tensors(PROMPT, block.mmate)
    fit, calls = fitted(block, target, [random_inputs(PROMPT.length)], [layout])

    def error() -> float:
        mixed, local, share, _ = block.branches(calls[0].u, calls[0].position_embeddings, None, None, layout)
        heads = (share * mixed + (1 - share) * local).flatten(2)
        return float((heads - calls[0].heads_out).square().sum() / calls[0].heads_out.square().sum())

    fit.use()
    least = error()
    for direction in directions(block):
        kept = direction.norm.weight.clone()
        for change in (0.97, 1.03):
            direction.norm.weight.copy_(kept * change)
            assert error() > least
        direction.norm.weight.copy_(kept)


def test_a_direction_that_had_nothing_to_do_keeps_its_norms():
    block = random_block(0)
    kept = [direction.norm.weight.clone() for direction in directions(block)]
    fit, _ = fitted(block, random_block(0, seed=2), [random_inputs(13)], [None])
    fit.use()
    forward, backward = directions(block)
    assert not torch.equal(forward.norm.weight, kept[0]) and torch.equal(backward.norm.weight, kept[1])
