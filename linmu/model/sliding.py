"""The text window: softmax attention over the first tokens of a sequence (sinks) and its last ones (a ring).

Glossary
    W, T        tokens of the ring (`text_window`) and sinks (`text_sinks`); N = T + W slots
    number      of a token: 0 for the first one of its sequence, padding is not counted
    slot        where a token's key and value stand: slot t for number t < T, else T + (t - T) mod W
    count       [B] tokens of each sequence that were read before this call
    G, r        key/value heads, query heads per key/value head
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Past = tuple[Tensor, Tensor, Tensor]


def slot_of(number: Tensor, sinks: int, window: int) -> Tensor:
    """The slot of every token number; negative numbers (no token) get some slot of the ring."""
    ring = sinks + torch.remainder(number - sinks, window)
    return ring if sinks == 0 else torch.where((number >= 0) & (number < sinks), number, ring)


def newest_in_slots(last: Tensor, sinks: int, window: int) -> Tensor:
    """Number [B,N] of the token in every slot once token `last` [B] is read; slot j is empty where j > last."""
    slot = torch.arange(sinks + window, device=last.device)
    number = last[:, None] - torch.remainder(last[:, None] - slot, window)
    return number if sinks == 0 else torch.where(slot < sinks, slot, number)


def present_index(count: Tensor, start: Tensor, last: Tensor, sinks: int, window: int) -> Tensor:
    """What every slot holds after a call: a row [B,N] of past slots | the call's tokens; all arguments but W, T [B].

    count: tokens before the call; start: the number of its first column; last: of its last one.
    """
    slot = torch.arange(sinks + window, device=count.device)
    newest = newest_in_slots(last, sinks, window)
    written = (slot <= last[:, None]) & (newest >= count[:, None])
    return torch.where(written, sinks + window + newest - start[:, None], slot)


def sliding_attention(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, past: Past, sinks: int, scale: float
) -> tuple[Tensor, Past]:
    """Causal attention over the first `sinks` tokens and the last W, the current one included; cost linear in S.

    q [B,S,H,d], k and v [B,S,G,d] (rotated), valid [B,S] bool, False on padding at the left;
    past = keys [B,G,N,d], values, count [B] int64. Returns y [B,S,H,d] and the new past.
    """
    past_k, past_v, count = past
    length, window = q.shape[1], past_k.shape[2] - sinks
    start = count - (~valid).sum(1)
    last = start + length - 1
    keys = torch.cat([past_k.transpose(1, 2).to(k.dtype), k], 1)  # [B, N+S, G, d]
    values = torch.cat([past_v.transpose(1, 2).to(v.dtype), v], 1)
    index = present_index(count, start, last, sinks, window)
    present_k, present_v = (_rows(x, index).transpose(1, 2) for x in (keys, values))
    index, allowed = blocks(count, start, length, sinks, window)  # [B, n, M], [B, n, L, M]
    number, size = allowed.shape[1:3]
    k, v = (_rows(x, index.flatten(1)).unflatten(1, (number, -1)).flatten(0, 1) for x in (keys, values))
    q = functional.pad(q, (0, 0, 0, 0, 0, number * size - length)).unflatten(1, (number, size)).flatten(0, 1)
    y = attend(q, k, v, allowed.flatten(0, 1)[:, None], scale)
    return y.unflatten(0, (-1, number)).flatten(1, 2)[:, :length], (present_k, present_v, last + 1)


def blocks(count: Tensor, start: Tensor, length: int, sinks: int, window: int) -> tuple[Tensor, Tensor]:
    """Queries in n blocks of L = min(S, W), each with M = T + W + L keys: what it reads and what a query may see.

    Returns index [B,n,M] into past slots | the call's tokens, and allowed [B,n,L,M]. Keys are the sinks, the W tokens
    before the block, the block. A query that is padding sees itself, so that no row is empty.
    """
    size, slots, device = min(length, window), sinks + window, count.device
    begin = torch.arange(0, length, size, device=device)  # [n]
    column = begin[:, None] + torch.arange(-window, size, device=device)  # [n, W+L]
    number = start[:, None, None] + column  # [B, n, W+L]
    inside = slots + column.clamp(max=length - 1)
    index = torch.where(number < count[:, None, None], slot_of(number, sinks, window), inside)
    offset = torch.arange(window + size, device=device) - torch.arange(size, device=device)[:, None]  # [L, W+L]
    band = (offset >= 1) & (offset <= window)  # query i stands at key W + i
    allowed = (band & (number >= 0)[:, :, None]) | (offset == window)
    if not sinks:
        return index, allowed
    sink = torch.arange(sinks, device=device)
    new = slots + (sink - start[:, None]).clamp(0, length - 1)  # [B, T]
    first = torch.where(sink < count[:, None], sink, new)[:, None].expand(-1, len(begin), -1)
    left = sink <= (number[..., window:] - window)[..., None]  # sinks that are not among the last W any more
    return torch.cat([first, index], -1), torch.cat([left, allowed], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Softmax attention: q [N,L,H,d], k and v [N,M,G,d], allowed [N,1,L,M] -> [N,L,H,d]."""
    repeat = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale).transpose(1, 2)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B,M,G,d] by index [B,N] -> [B,N,G,d]."""
    return torch.take_along_dim(x, index[..., None, None], 1)
