"""Seed one M-MATE block from the self-attention it replaces, and measure how far it is from it.

Inherited: q, k, v (and their norms) for both branches, o_proj. Measured on the teacher's activations, over any number
of prompts, one at a time:
    decay   of every head, from the mean distance that its attention looks (head_statistics)
    alpha   the share of attention outside the windows, as a linear function of the block's input (head_statistics)
    norms   the root mean square of every head's output
Norms fitted to the heads by least squares leave less error in every layer and worse logits: an output that is hard to
predict is shrunk (docs/mmate.md, initial values).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor, nn

from linmu.conversion.head_statistics import HeadStatistics
from linmu.conversion.layer_call import LayerCall
from linmu.model.attention import MMateAttention
from linmu.model.flex_ma import Direction
from linmu.model.mmate import MMateBlock
from linmu.model.rotary import batch_tables
from linmu.model.ssm import dt_bias_of_rates

TINY = 1e-30
# Added to alpha's bias beside a text window: an untrained branch is a poor guess of far attention. SmolLM2-135M, window
# 64, 4 sinks, contexts of 512: KL 0.25 to 0.35 with the measured share, 0.19 from -2 on, 0.19 with the window alone.
CAUTION = -2.0


@dataclass(frozen=True)
class LayerReport:
    """Distance of an untrained block from its teacher, given the teacher's own inputs.

    nmse: squared error over the teacher's squared output; cosine: mean per-token cosine; rms_ratio: student / teacher;
    tries: nmse with each combination of measurements ("blind": none, "decay", "alpha", "decay, alpha"); used: the one
    that was kept, whose nmse this is.
    """

    layer: int
    nmse: float
    cosine: float
    rms_ratio: float
    tries: dict[str, float]
    used: str


class Distance:
    """Sums of a block's distance from its teacher over prompts."""

    def __init__(self) -> None:
        self.error = self.squares = self.output = self.cosine = 0.0
        self.tokens = 0

    def add(self, output: Tensor, target: Tensor) -> None:
        """Both [B,S,D]."""
        output, target = output.float(), target.float()
        self.error += float((output - target).square().sum())
        self.squares += float(target.square().sum())
        self.output += float(output.square().sum())
        self.cosine += float(nn.functional.cosine_similarity(output, target, dim=-1).sum())
        self.tokens += target[..., 0].numel()

    @property
    def nmse(self) -> float:
        """Squared error over the teacher's squares."""
        return self.error / max(self.squares, TINY)


@dataclass(frozen=True)
class Try:
    """Measurements used together: decay rates [H], alpha's weight and bias (None: not used); what they give."""

    rates: Tensor | None
    alpha: tuple[Tensor, Tensor] | None
    distance: Distance


class BlockSeeding:
    """The seeding of one block: `look` at every prompt, `start`, `judge` every prompt, `settle`.

    Every combination of measurements is tried, none of them ("blind") too; the one that leaves the least error is kept.
    """

    def __init__(self, block: MMateAttention):
        self.block, self.statistics = block, HeadStatistics(block)
        self.tries: dict[str, Try] = {}

    def look(self, call: LayerCall, layout: dict[str, Tensor] | None) -> None:
        """Add up what the teacher's heads do."""
        tables = batch_tables(call.position_embeddings, len(call.u))
        self.statistics.add(self.block.flex, call.u, tables, call.heads_out, call.valid, layout)

    def start(self) -> None:
        """Norms as large as the teacher's heads, and what is to be tried, now that the heads are measured."""
        for direction in self._directions():
            direction.norm.weight.copy_(self.statistics.output_rms[:, None].expand_as(direction.norm.weight))
        mmate = self.block.mmate
        rates = self.statistics.rates(mmate.min_half_life, mmate.max_half_life)
        alpha = self.statistics.alpha() if self.block.alpha is not None else None
        for decay in (None, rates) if rates is not None else (None,):
            for share in (None, alpha) if alpha is not None else (None,):
                names = ["decay"] * (decay is not None) + ["alpha"] * (share is not None)
                self.tries[", ".join(names) or "blind"] = Try(decay, share, Distance())

    def judge(self, call: LayerCall, layout: dict[str, Tensor] | None) -> None:
        """Measure the block with every try."""
        for one in self.tries.values():
            self._use(one)
            one.distance.add(self._output(call, layout), call.target)

    def settle(self) -> LayerReport:
        """Use the try that leaves the least error; what all prompts together showed."""
        errors = {name: one.distance.nmse for name, one in self.tries.items()}
        used = min(errors, key=errors.__getitem__)
        self._use(self.tries[used])
        distance = self.tries[used].distance
        ratio = (distance.output / max(distance.squares, TINY)) ** 0.5
        cosine = distance.cosine / max(distance.tokens, 1)
        return LayerReport(self.block.layer_idx, distance.nmse, cosine, ratio, errors, used)

    def _use(self, one: Try) -> None:
        """Decays and alpha, or those that know nothing of the teacher."""
        for direction in self._directions():
            if one.rates is None:
                direction.spread_rates()
            else:
                shared = one.rates.unflatten(0, (direction.state_heads, -1)).mean(1)
                direction.dt_bias.copy_(dt_bias_of_rates(shared))
        if self.block.alpha is not None:
            for parameter, value in zip(self.block.alpha.parameters(), one.alpha or (0.0, 0.0), strict=True):
                parameter.copy_(value) if isinstance(value, Tensor) else parameter.fill_(value)
            if self.block.mmate.text_window:
                self.block.alpha.bias.add_(CAUTION)

    def _directions(self) -> list[Direction]:
        both = (self.block.scan_forward, self.block.scan_backward)
        return [direction for direction in both if direction is not None]

    def _output(self, call: LayerCall, layout: dict[str, Tensor] | None) -> Tensor:
        return MMateBlock.forward(self.block, call.u, call.position_embeddings, None, call.valid, layout)[0]


def inherit(block: MMateAttention, attention: nn.Module) -> None:
    """Move the teacher's projections into Flex-MA, copy them into Local-Swin; no other copy is made."""
    dims, like = block.dims, attention.q_proj.weight
    block.to_empty(device=like.device)
    block.to(dtype=like.dtype)
    block.seed()
    for name in ("q_proj", "k_proj", "v_proj"):
        linear = getattr(attention, name)
        setattr(block.flex, name, linear)
        if block.swin is not None:
            setattr(block.swin, name, copy.deepcopy(linear))
    if dims.qk_norm:
        for name in ("q_norm", "k_norm"):
            for branch in filter(None, (block.flex, block.swin)):
                getattr(branch, name).weight = nn.Parameter(getattr(attention, name).weight.detach().clone())
    block.o_proj = attention.o_proj
