"""Norm scales of one M-MATE block in closed form: least squares, channel by channel, to the teacher's head outputs.

A block's heads are linear in the norm weights of its directions: y = sum_i w_i z_i + rest, where `rest` is what the
windows give. Two directions make a 2 x 2 system for every channel of every head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linmu.conversion.layer_call import LayerCall
from linmu.model.attention import MMateAttention
from linmu.model.flex_ma import Direction

PRIOR_TOKENS = 32.0  # tokens without a say that are added to the prompts': few tokens must not make large scales


class NormFit:
    """Sums over prompts: `add` each of them, then `use`."""

    def __init__(self, block: MMateAttention):
        self.block, shape = block, (block.dims.heads, block.dims.head_dim)
        count = len(directions(block))
        self.gram = torch.zeros(*shape, count, count).double()
        self.moment = torch.zeros(*shape, count).double()
        self.tokens = torch.zeros(count).double()  # of which a direction says something

    def add(self, call: LayerCall, layout: dict[str, Tensor] | None) -> None:
        """One prompt, with the decays and alphas that the block has now."""
        parts, rest = self._parts(call, layout)
        for one, x in enumerate(parts):
            self.tokens[one] += float((x != 0).flatten(2).any(-1).sum())
            self.moment[..., one] += (x * rest).sum((0, 1)).cpu()
            for two, y in enumerate(parts):
                self.gram[..., one, two] += (x * y).sum((0, 1)).cpu()

    @property
    def weights(self) -> Tensor:
        """[H, d, directions]; 0 for a direction that had nothing to do."""
        diagonal = self.gram.diagonal(dim1=-2, dim2=-1).mean((0, 1))
        ridge = PRIOR_TOKENS * diagonal / self.tokens.clamp(min=1)
        ridge = torch.where(diagonal > 0, ridge, torch.ones_like(diagonal))
        return torch.linalg.solve(self.gram + torch.diag(ridge), self.moment)

    def use(self) -> None:
        """Set the norms; a direction that had nothing to do keeps what it has."""
        weights = self.weights
        for number, direction in enumerate(directions(self.block)):
            if float(self.gram[..., number, number].sum()) > 0:
                direction.norm.weight.copy_(weights[..., number])

    def _parts(self, call: LayerCall, layout: dict[str, Tensor] | None) -> tuple[list[Tensor], Tensor]:
        """What each direction gives with norms of 1, and what the windows leave for them: [B,S,H,d] each."""
        both, parts = directions(self.block), []
        kept = [direction.norm.weight.clone() for direction in both]
        valid = 1.0 if call.valid is None else call.valid[..., None, None].double()
        heads = call.heads_out.unflatten(-1, (self.block.dims.heads, -1)).double() * valid
        rest = heads
        for chosen in both:
            for direction in both:
                direction.norm.weight.fill_(float(direction is chosen))
            mixed, local, share, _ = self.block.branches(call.u, call.position_embeddings, None, call.valid, layout)
            part = mixed.double()
            if local is not None and share is not None:
                part = share.double() * part
                rest = heads - (1 - share.double()) * local.double() * valid
            parts.append(part * valid)
        for direction, weight in zip(both, kept, strict=True):
            direction.norm.weight.copy_(weight)
        return parts, rest


def directions(block: MMateAttention) -> list[Direction]:
    """The scan directions that a block has, the forward one first."""
    return [direction for direction in (block.scan_forward, block.scan_backward) if direction is not None]
