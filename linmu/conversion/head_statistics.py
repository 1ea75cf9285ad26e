"""What a teacher's attention heads do on probe prompts, in one streaming pass: how far they look, what windows miss.

Sources of the idea: half-life from the mean attention distance (Taylor-Calibrate, 2026). That the share of attention
outside a window is what alpha has to be is exact: softmax attention is (1 - share) * attention inside the window +
share * attention outside of it.

Glossary
    near        keys that a token's window branch sees: text window with its sinks, or Local-Swin's 3D window
    far         share of a token's attention that is not near [S, H]
    distance    tokens between a query and a key, weighted by far attention
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from linmu.model.mmate import MMateBlock, Projections
from linmu.model.rotary import rotate

ROWS = 128  # queries at a time: attention matrices of a long prompt are never held whole
SINK_TOKENS = 4  # first tokens draw attention whatever they say: their distance means nothing
SMALLEST_SHARE = 1e-3  # of attention: bounds the logits that alpha is fitted to
RIDGE = 3.0  # of the inputs' mean square: a probe has fewer tokens than a block has inputs
FASTEST = 5.0  # largest decay rate per token
LEAST_MASS, LEAST_ROWS = 1.0, 8  # attention in all, tokens: below it nothing was measured


class HeadStatistics:
    """Sums over prompts for one block: `add` every prompt, then read `rates`, `alpha` and `output_rms`."""

    def __init__(self, block: MMateBlock):
        dims, mmate = block.dims, block.mmate
        self.dims, self.mmate, self.shift = dims, mmate, block.shift
        self.distance, self.mass = torch.zeros(dims.heads).double(), torch.zeros(dims.heads).double()
        self.squares, self.outputs = torch.zeros(dims.heads).double(), 0
        self.gram = torch.zeros(dims.hidden + 1, dims.hidden + 1).double()  # of inputs and a 1
        self.moment = torch.zeros(dims.hidden + 1, dims.heads).double()
        self.rows = 0

    def add(
        self,
        projections: Projections,
        u: Tensor,
        tables: tuple[Tensor, Tensor],
        heads_out: Tensor,
        valid: Tensor | None,
        layout: dict[str, Tensor] | None,
    ) -> None:
        """One batch: u [B,S,D], tables cos and sin [B,S,d/2], the teacher's per-head output [B,S,H*d], valid [B,S]."""
        q, k, _ = projections(u)
        q, k = rotate(q, *tables).float(), rotate(k, *tables).float()
        windows = None if layout is None or not self.mmate.local_swin else _window_of(layout, self.shift, u.shape[:2])
        for row in range(len(u)):
            first = 0 if valid is None else int((~valid[row]).sum())
            part = slice(first, None)
            self.squares += (
                heads_out[row, part].double().unflatten(-1, (self.dims.heads, -1)).square().sum((0, 2)).cpu()
            )
            self.outputs += heads_out[row, part].shape[0] * self.dims.head_dim
            self._row(q[row, part], k[row, part], u[row, part], None if windows is None else windows[row, part])

    def _row(self, q: Tensor, k: Tensor, u: Tensor, windows: Tensor | None) -> None:
        length, repeat = len(q), self.dims.heads // self.dims.kv_heads
        keys = k.repeat_interleave(repeat, 1).transpose(0, 1)  # [H, S, d]
        place = torch.arange(length, device=q.device)
        far = torch.zeros(length, self.dims.heads)
        for start in range(0, length, ROWS):
            query = place[start : start + ROWS]
            scores = q[query].transpose(0, 1) @ keys.mT * self.dims.head_dim**-0.5  # [H, R, S]
            behind = query[:, None] - place  # [R, S]
            attention = scores.masked_fill(behind < 0, -math.inf).softmax(-1)
            attention = attention.masked_fill(self._near(behind, query, place, windows), 0.0)
            far[query] = attention.sum(-1).T.cpu()
            attention[..., :SINK_TOKENS] = 0.0
            self.distance += (attention * behind).sum((1, 2)).double().cpu()
            self.mass += attention.sum((1, 2)).double().cpu()
        if used := self._fitted(place, windows):
            self._regress(u[used[0]].double().cpu(), far[used[0].cpu()])

    def _near(self, behind: Tensor, query: Tensor, place: Tensor, windows: Tensor | None) -> Tensor:
        """[R, S] bool: keys of the window branch."""
        text = (behind < self.mmate.text_window) | (place < self.mmate.text_sinks)
        near = text if self.mmate.text_window else torch.zeros_like(behind, dtype=torch.bool)
        if windows is None:
            return near
        mine = windows[query][:, None]
        return torch.where(mine >= 0, mine == windows, near)

    def _fitted(self, place: Tensor, windows: Tensor | None) -> tuple[Tensor] | None:
        """Tokens whose alpha means something: vision tokens with windows, and text behind which something lies."""
        used = torch.zeros_like(place, dtype=torch.bool)
        if self.mmate.text_window:
            used |= place >= self.mmate.text_slots
        if windows is not None:
            used = torch.where(windows >= 0, torch.ones_like(used), used)
        return (used,) if bool(used.any()) else None

    def _regress(self, u: Tensor, far: Tensor) -> None:
        share = far.double().clamp(SMALLEST_SHARE, 1 - SMALLEST_SHARE)
        inputs = torch.cat([u, u.new_ones(len(u), 1)], 1)
        self.gram += inputs.T @ inputs
        self.moment += inputs.T @ share.logit()
        self.rows += len(u)

    @property
    def output_rms(self) -> Tensor:
        """Root mean square of every head's output [H]."""
        return (self.squares / max(self.outputs, 1)).sqrt().float()

    def rates(self, shortest: float, longest: float) -> Tensor | None:
        """Decay rate of every head [H]: ln 2 over the mean distance of far attention; None where no head has any.

        Half-lives are kept between `shortest` and `longest` tokens. Heads that never look far take the others' mean.
        """
        measured = self.mass >= LEAST_MASS
        if not measured.any():
            return None
        half_life = self.distance / self.mass.clamp(min=LEAST_MASS)
        half_life = torch.where(measured, half_life, half_life[measured].mean()).clamp(shortest, longest)
        return (math.log(2) / half_life).clamp(max=FASTEST)

    def alpha(self) -> tuple[Tensor, Tensor] | None:
        """Weight [H,D] and bias [H] of alpha: least squares to the logit of the far share; None without tokens."""
        if self.rows < LEAST_ROWS:
            return None
        gram = self.gram.clone()
        size = self.dims.hidden
        gram.diagonal()[:size] += RIDGE * gram.diagonal()[:size].mean()
        solution = torch.linalg.solve(gram, self.moment)
        return solution[:size].T.float(), solution[size].float()


def _window_of(layout: dict[str, Tensor], shift: int, shape: torch.Size) -> Tensor:
    """[B, S] which Local-Swin window a token is in, -1 for text."""
    windows, segment = layout["windows"][shift], layout["window_segment"][shift]  # [W, L]
    if not windows.shape[0]:
        return torch.full(shape, -1, device=windows.device)
    name = torch.where(segment >= 0, torch.arange(len(windows), device=segment.device)[:, None] * windows.shape[1], -1)
    name = torch.where(segment >= 0, name + segment, name)
    slot = layout["window_slot"][shift].view(shape)
    return torch.where(layout["vision"].view(shape), name.flatten()[slot], torch.full_like(slot, -1))
