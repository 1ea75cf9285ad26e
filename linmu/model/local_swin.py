"""Local-Swin: attention inside small 3D windows of vision tokens.

Glossary
    windows         [W, L] token indices of W window rows, several small windows may share one row
    segment         [W, L] which window of its row a slot belongs to, -1 = padding; slots attend inside their segment
    G, r            key/value heads, query heads per key/value head
"""

from __future__ import annotations

from torch import Tensor

from linmu.model.sliding import attend


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, segment: Tensor, index: Tensor | None, scale: float) -> Tensor:
    """Attention inside segments: q [W,L,H,d], k and v [W,L,G,d], segment [W,L] -> [W,L,H,d].

    Padding attends to padding only, so no row is empty and padded keys (not zero: biases) touch nothing.
    `index` [W,L] of token indices makes it causal (keys no later than the query); None = bidirectional.
    """
    allowed = segment[:, :, None] == segment[:, None, :]  # [W, L, L]
    if index is not None:
        allowed = allowed & (index[:, None, :] <= index[:, :, None])
    return attend(q, k, v, allowed[:, None], scale)
