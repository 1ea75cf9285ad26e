"""Local-Swin: attention inside small 3D windows of vision tokens, and the optional sliding window of text.

Glossary
    windows         [W, L] token indices of W window rows, several small windows may share one row
    segment         [W, L] which window of its row a slot belongs to, -1 = padding; slots attend inside their segment
    G, r            key/value heads, query heads per key/value head
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, segment: Tensor, index: Tensor | None, scale: float) -> Tensor:
    """Attention inside segments: q [W,L,H,d], k and v [W,L,G,d], segment [W,L] -> [W,L,H,d].

    Padding attends to padding only, so no row is empty and padded keys (not zero: biases) touch nothing.
    `index` [W,L] of token indices makes it causal (keys no later than the query); None = bidirectional.
    """
    allowed = segment[:, :, None] == segment[:, None, :]  # [W, L, L]
    if index is not None:
        allowed = allowed & (index[:, None, :] <= index[:, :, None])
    return _attend(q, k, v, allowed[:, None], scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Q [N,L,H,d], k and v [N,M,G,d], allowed [N,1,L,M] -> [N,L,H,d]."""
    repeat = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale).transpose(1, 2)


def sliding_attention(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, past: tuple[Tensor, Tensor, Tensor], scale: float
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Causal attention over the last `window` tokens, the current one included; cost linear in S.

    q [B,S,H,d], k and v [B,S,G,d] (rotated), valid [B,S] bool; past = keys [B,G,window,d], values, valid [B,window].
    Returns y [B,S,H,d] and the new past (the last `window` keys and values).
    """
    past_k, past_v, past_valid = past
    window, length = past_k.shape[2], q.shape[1]
    keys = torch.cat([past_k.transpose(1, 2).to(k.dtype), k], 1)  # [B, window+S, G, d]
    values = torch.cat([past_v.transpose(1, 2).to(v.dtype), v], 1)
    valid_keys = torch.cat([past_valid, valid], 1)
    present = (keys[:, length:].transpose(1, 2), values[:, length:].transpose(1, 2), valid_keys[:, length:])
    tail = -length % window
    blocks = (length + tail) // window
    grow = lambda x: functional.pad(x, (0, 0, 0, 0, 0, tail))  # noqa: E731
    keys, values, q = grow(keys), grow(values), grow(q).unflatten(1, (blocks, window))  # q [B, n, W, H, d]
    valid_keys = functional.pad(valid_keys, (0, tail))
    pair = lambda x: x.unfold(1, 2 * window, window).movedim(-1, 2)  # noqa: E731  # [B, n, 2W, ...]
    keys, values, valid_keys = pair(keys), pair(values), pair(valid_keys)
    offset = torch.arange(2 * window, device=q.device) - torch.arange(window, device=q.device)[:, None]
    band = (offset >= 1) & (offset <= window)  # query i of a block stands at key i + window; band of `window` keys
    own_key = offset == window  # padding tokens attend to themselves: no empty row
    allowed = (band & valid_keys[:, :, None, :]) | own_key  # [B, n, W, 2W]
    y = _attend(q.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), allowed.flatten(0, 1)[:, None], scale)
    return y.unflatten(0, (-1, blocks)).flatten(1, 2)[:, :length], present
