"""The step form's operations as a program for ExecuTorch: TorchOps in what XNNPACK computes at any prompt length.

One sequence. Activations are [1, S, C]; queries, keys and values by head are [H, S, d] from the convolution to the norm
(one head is both), because to XNNPACK every view and every permutation is a copy. It takes matrix products,
convolutions, arithmetic and slices along axes of fixed length, but no sums, comparisons or integers. Hence means, sums
over a head and the halves of rotary embedding are products with small constant matrices; cumulative sums are one with a
triangle of ones (XNNPACK's products are true float32); masks are added before the exponential. A piece is one chunk of
the scan. Masks and indices are made once per call, by portable kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor
from torch.nn import functional

from linmu.config import MMateConfig
from linmu.export.phone.weights import Buffers
from linmu.formats.matrix_format import MatrixFormat, part
from linmu.model.sliding import newest_in_slots, present_index
from linmu.step.exact_angles import digit_rule
from linmu.step.form import DecoderForm
from linmu.step.torch_ops import TorchOps

MASKED = -1e30  # added before an exponential: exp() is exactly 0, and no difference of log-decays comes near it


@dataclass(frozen=True)
class Causal:
    """Constants of one scan over N tokens; restarts: [1, N, 1], 0 where a span begins, or None without restarts.

    triangle [1, N, N]: ones where s <= t; bias [1, N, N]: 0 where token t sees token s (of the backward direction:
    s < t), else MASKED; row [1, 1, N]: ones.
    """

    triangle: Tensor
    bias: Tensor
    row: Tensor
    restarts: Tensor | None


@dataclass(frozen=True)
class Mask:
    """Which tokens are vision tokens: `yes` and `no` [1, S, 1] float, each other's complement."""

    yes: Tensor
    no: Tensor


@dataclass(frozen=True)
class Recent:
    """Text windows of one call: bias [1, r S, N + S], 0 where a token sees a slot or one of the call's tokens.

    index [N]: what every slot holds afterwards, of past slots | the call's tokens; beyond: tokens for which something
    has left the window.
    """

    bias: Tensor
    index: Tensor
    beyond: Mask


class Straight:
    """The index of tokens in their own order: nothing to gather."""


class PhoneOps(TorchOps):
    """Implements linmu.step.ops.Ops on one sequence; see the module."""

    weights: Buffers  # type: ignore[assignment]  # read only

    def __init__(self, form: DecoderForm, weights: Buffers):
        self.form, self.weights = form, weights
        self.causal: Causal | None = None
        self.rounded_inputs: dict[str, Tensor] = {}  # of the last run, by matrix, as they are before they are rounded

    # ---- matrix products -----------------------------------------------------------------------------------------
    def product(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.linear(x, y)

    def embed(self, ids: Tensor, weight: str) -> Tensor:
        return table_rows(ids, self.weights, weight)

    def head(self, x: Tensor, weight: str) -> Tensor:
        return self._product(x, weight)

    def rounded(self, x: Tensor, weight: str) -> Tensor:
        return x  # every product rounds its rows by itself: a row's codes are the same wherever it stands

    def linear(self, x: Tensor, weight: str) -> Tensor:
        return self.multiply(x, weight)

    def multiply(self, x: Tensor, weight: str) -> Tensor:
        y = self._product(x, weight)
        return self.add_bias(y, weight + "_bias") if weight + "_bias" in self.weights else y

    def _product(self, x: Tensor, weight: str) -> Tensor:
        """X times a matrix, which may be quantized."""
        format = self.form.quantized.get(weight)
        if format is None:
            return self.product(x, self.weights[weight])
        if (factor := part(weight, "pre")) in self.weights:
            x = x * self.weights[factor]
        self.rounded_inputs[weight] = x
        return self.product(rounded_rows(x), self._value(weight, format))

    def _value(self, name: str, format: MatrixFormat) -> Tensor:
        """A quantized matrix [out, in] as the pattern that XNNPACK multiplies without unpacking it."""
        q, scale, zero = (self.weights[part(name, kind)] for kind in ("q", "scale", "zero"))
        ops = torch.ops.quantized_decomposed
        if format.group:
            return ops.dequantize_per_channel_group(q, scale, zero, -8, 7, torch.int8, format.group, torch.float32)
        return ops.dequantize_per_channel(q, scale, zero, 0, -128, 127, torch.int8)

    def split(self, x: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
        if len(sizes) == 1:
            return [x]
        ends, size = list(accumulate(sizes)), self.form.head_dim
        places = list(zip([0, *ends], ends, strict=False))
        if x.shape[-1] == size < ends[-1]:  # by head
            return [x[start // size : end // size] for start, end in places]
        return [x[..., start:end] for start, end in places]

    # ---- elementwise ---------------------------------------------------------------------------------------------
    def add_rms_norm(self, x, update, weight: str, eps: float):
        x = x if update is None else x + update
        mean = self.product(x * x, self.weights["mean.hidden"])
        return x * torch.rsqrt(mean + self.weights["eps.hidden"]) * self.weights[weight], x

    def head_norm(self, x: Tensor, weight: str, form: DecoderForm) -> Tensor:
        mean = self.product(x * x, self.weights["mean.head"])
        return self._packed(x * torch.rsqrt(mean + self.weights["eps.head"]) * self.weights[weight])

    def qk_norm(self, qkv: Tensor, weight: str, form: DecoderForm) -> Tensor:
        scale = self.weights[weight]  # [H + kv heads, d]
        qk, v = self.split(qkv, (scale.numel(), form.kv_heads * form.head_dim))
        heads = qk.view(-1, len(scale), form.head_dim)
        mean = self.product(heads * heads, self.weights["mean.head"])
        normed = heads * torch.rsqrt(mean + self.weights["eps.qk"]) * scale
        return torch.cat([normed.view(1, -1, scale.numel()), v], -1)

    def silu_mul(self, x: Tensor) -> Tensor:
        gate, up = self.split(x, (x.shape[-1] // 2,) * 2)
        return gate * torch.sigmoid(gate) * up

    def where(self, mask: Mask, x: Tensor, other: Tensor | float) -> Tensor:
        if isinstance(other, Tensor):
            return x * mask.yes + other * mask.no
        return x * mask.yes + mask.no * other if other else x * mask.yes

    def scale_heads(self, x: Tensor, factor: Tensor, form: DecoderForm) -> Tensor:
        scaled = x.view(-1, form.heads, form.head_dim) * factor.view(-1, form.heads, 1)
        return scaled.view(1, -1, form.heads * form.head_dim)

    def log_decay(self, raw: Tensor, dt_bias: str, scale: str) -> Tensor:
        return self.weights[scale] * softplus(raw + self.weights[dt_bias])

    # ---- tokens --------------------------------------------------------------------------------------------------
    def token_index(self, x: Tensor) -> Any:
        index = torch.arange(x.shape[1])
        self.causal, self.recent = causal_constants(index, None), None
        extended = self.form.vision and self.form.mmate.text_window  # the tables have a row more, for padding
        return index if extended else Straight()

    def batch_index(self, position_ids: Tensor, form: DecoderForm) -> Any:
        self.recent = None
        return Straight()

    def rope_tables(self, position_ids: Tensor, form: DecoderForm) -> tuple[Tensor, Tensor]:
        rows = position_ids.view(form.rope_axes, 1, -1, 1)
        values, above, carry = (torch.from_numpy(table) for table in digit_rule())
        carried = torch.div(rows, above, rounding_mode="floor") * carry
        digits = (torch.div(rows, values, rounding_mode="floor") - carried).float()  # [P, digits, S, 1]
        coarse, fine = (digits * self.weights["turns"]).sum((0, 1)).chunk(2, -1)
        angles = (coarse - coarse.round()) * (2 * math.pi) + fine
        angles = torch.cat([angles, angles], -1)
        return (angles.cos() * form.rope_scale)[None], (angles.sin() * form.rope_scale)[None]  # [1, S, d]

    def extend_rows(self, table: Tensor, backward: Tensor) -> Tensor:
        return torch.cat([table, table.new_zeros(1, 1, table.shape[2])], 1)  # all padding indices are S

    def prepare_layout(self, layout: dict[str, Tensor], form: DecoderForm) -> dict[str, Any]:
        ready: dict[str, Any] = {
            name: [table[i] for i in range(table.shape[0])]
            for name, table in layout.items()
            if name in ("order", "inverse", "backward", "backward_slot", "window_slot")
        }
        windows, segment = layout["windows"], layout["window_segment"]  # [2, W, L]
        allowed = segment[..., :, None] == segment[..., None, :]
        if form.mmate.causal_windows:
            allowed = allowed & (windows[..., None, :] <= windows[..., :, None])
        bias = (1 - allowed.float()) * MASKED
        yes = layout["vision"].float()[None, :, None]
        ready["windows"] = [windows[i].view(-1) for i in range(2)]
        ready["window_bias"] = [bias[i].unsqueeze(1) for i in range(2)]  # [W, 1, L, L]
        ready["any_vision"] = None
        ready["vision"] = Mask(yes, 1 - yes)
        restart = layout["restart"]
        ready["restart"] = causal_constants(torch.arange(restart.shape[0]), restart, strict=True)
        return ready

    def branch(self, condition, then, otherwise) -> list[Tensor]:
        """The general path, whatever the piece: a text piece has one row of padding in each of its index tensors."""
        return then()

    def last_token(self, x: Tensor) -> Tensor:
        return x[:, -1:]

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        return x.index_select(1, index)

    def take_or_zero(self, x: Tensor, index: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros(1, 1, x.shape[2])], 1).index_select(1, index)

    def repeat_heads(self, x: Tensor, times: int, head_dim: int) -> Tensor:
        if times == 1:
            return x
        heads = self._by_head(x).contiguous()  # [M, S, d]
        owners = heads.shape[0]
        repeated = heads.view(owners, 1, -1, head_dim) * self.weights[f"ones.{times}"]
        return repeated.view(owners * times, -1, head_dim)

    # ---- branches ------------------------------------------------------------------------------------------------
    def causal_conv(self, x: Tensor, weight: str, past: Tensor | None) -> tuple[Tensor, Tensor]:
        taps, size = self.weights[weight], self.form.head_dim
        before, channels = taps.shape[-1] - 1, taps.shape[0]
        joined = torch.cat([torch.zeros(1, before, channels) if past is None else past, x], 1)  # [1, K-1+S, C]
        y = functional.conv1d(joined.permute(0, 2, 1), taps, self.weights[weight + "_bias"], groups=channels)
        heads = y.view(channels // size, size, -1).permute(0, 2, 1).contiguous()  # [C / d, S, d]
        return heads, joined[:, -before:]

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor, index: Any, heads: int) -> Tensor:
        if not isinstance(index, Straight):
            cos, sin = cos.index_select(1, index), sin.index_select(1, index)
        x = self._by_head(x)
        return x * cos + self.product(x, self.weights["turn"]) * sin

    def linear_attention(self, q, k, v, g, past, restart, form: DecoderForm):
        owners, repeat = form.state_heads, form.heads // form.state_heads
        q = self._by_owner(q * form.head_dim**-0.5, owners)  # k and v: [M, N, d]
        keys = k.permute(0, 2, 1)  # [M, d, N]
        if v.shape[1] == 1 and restart is None:  # what stands below for one token: the same sums, the same bits
            decay = torch.exp(g).view(-1, 1, 1)
            y = torch.bmm(q, keys) * v + torch.bmm(q * decay, _heads(past))
            new = decay * _heads(past) + keys * v
            return self._apart(y), _shaped(new, past)
        causal: Any = self.causal if restart is None else restart
        if causal.restarts is not None:
            g = g * causal.restarts
        total = torch.bmm(causal.triangle, g)  # [1, N, M]
        at_token, before = total.permute(2, 1, 0), total.permute(2, 0, 1)  # [M, N, 1], [M, 1, N]
        decay = _copies(torch.exp(at_token - before + causal.bias), repeat, 1)
        y = torch.bmm(torch.bmm(q, keys) * decay, v)
        if past is None:  # of the backward direction nothing is carried on
            return self._apart(y), None
        state, end = _heads(past), torch.bmm(causal.row, g).view(-1, 1, 1)  # [M, d, d], [M, 1, 1]
        y = y + torch.bmm(q * _copies(torch.exp(at_token), repeat, 1), state)
        written = torch.bmm(keys * torch.exp(end - before), v)
        return self._apart(y), _shaped(torch.exp(end) * state + written, past)

    def _by_head(self, x: Tensor) -> Tensor:
        """[1, S, H * d] -> [H, S, d]; what is by head stays as it is."""
        size = self.form.head_dim
        return x if x.shape[-1] == size else x.view(-1, x.shape[-1] // size, size).permute(1, 0, 2)

    def _by_owner(self, q: Tensor, owners: int) -> Tensor:
        """[H, S, d] -> [M, r * S, d]: query heads of one state side by side."""
        return q if q.shape[0] == owners else q.contiguous().view(owners, -1, q.shape[2])

    def _apart(self, y: Tensor) -> Tensor:
        """[M, r * S, d], query heads of one owner side by side -> [H, S, d]."""
        owners, heads, size = y.shape[0], self.form.heads, y.shape[2]
        # in two views: torch.export cannot follow one
        return y if owners == heads else y.view(owners, heads // owners, -1, size).view(heads, -1, size)

    def _packed(self, y: Tensor) -> Tensor:
        """[H, S, d] -> [1, S, H * d]."""
        return y.permute(1, 0, 2).contiguous().view(1, -1, y.shape[0] * y.shape[2])

    def prepare_window(self, x: Tensor, fill: Tensor, form: DecoderForm) -> Recent:
        return recent_keys(x.shape[1], form.mmate, fill, form.heads // form.kv_heads)

    def beyond_window(self, recent: Recent) -> Mask:
        return recent.beyond

    def sliding_attention(self, qk, v, past_key, past_value, recent: Recent, form: DecoderForm):
        owners, size = form.kv_heads, form.head_dim
        q, k = self.split(qk, (form.heads * size, owners * size))
        q = self._by_owner(self._by_head(q * size**-0.5), owners)  # as in the recurrence
        keys, values = (torch.cat([_heads(past), self._by_head(x)], 1) for past, x in ((past_key, k), (past_value, v)))
        y = torch.bmm(torch.softmax(torch.bmm(q, keys.permute(0, 2, 1)) + recent.bias, -1), values)
        key, value = (_shaped(x.index_select(1, recent.index), past_key) for x in (keys, values))
        return self._packed(self._apart(y)), key, value

    def window_attention(self, q, k, v, bias, form: DecoderForm) -> Tensor:
        heads, size, length = form.heads, form.head_dim, bias.shape[-1]
        repeat = heads // form.kv_heads
        k, v = self.repeat_heads(k, repeat, size), self.repeat_heads(v, repeat, size)

        def rows(x: Tensor) -> Tensor:  # [W * H, L, d]
            apart = self._by_head(x).contiguous().view(heads, -1, length, size)
            return apart.permute(1, 0, 2, 3).contiguous().view(-1, length, size)

        scores = torch.bmm(rows(q * size**-0.5), rows(k).permute(0, 2, 1)).view(-1, heads, length, length)
        weights = torch.softmax(scores + bias, -1).view(-1, length, length)
        y = torch.bmm(weights, rows(v)).view(-1, heads, length, size)
        return y.permute(0, 2, 1, 3).contiguous().view(1, -1, heads * size)


def rounded_rows(x: Tensor) -> Tensor:
    """X [1, S, C] rounded to int8 row by row ("int8_rows"): the pattern that XNNPACK computes as its own kernels do.

    Run by torch instead of XNNPACK, a code may differ by one where it is a tie.
    """
    ops = torch.ops.quantized_decomposed
    scale, zero = ops.choose_qparams_per_token_asymmetric(x, torch.int8)
    codes = ops.quantize_per_token(x, scale, zero, -128, 127, torch.int8)
    return ops.dequantize_per_token(codes, scale, zero, -128, 127, torch.int8, torch.float32)


def table_rows(ids: Tensor, weights: Mapping[str, Tensor], table: str) -> Tensor:
    """Rows of a table [V, D], which may be quantized, for ids [1, S] -> [1, S, D]."""
    if table in weights:
        return functional.embedding(ids, weights[table])
    flat = ids.view(-1)
    scale = weights[part(table, "scale")].index_select(0, flat)
    return (weights[part(table, "q")].index_select(0, flat).float() * scale.view(-1, 1)).unsqueeze(0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to the last bits without log1p, which XNNPACK has not: the rounding of 1 + e is put right."""
    e = torch.exp(-torch.abs(x))
    u = e + 1.0
    return torch.relu(x) + (torch.log(u) + (e - (u - 1.0)) / u)


def causal_constants(index: Tensor, restart: Tensor | None, *, strict: bool = False) -> Causal:
    """The constants of a scan over tokens `index` [N] int64 with restarts [N] bool or None.

    strict: no token sees itself (the backward direction).
    """
    triangle = (index[:, None] >= index[None, :]).float()[None]
    visible = (index[:, None] > index[None, :]).float()[None] if strict else triangle
    bias, restarts = (1 - visible) * MASKED, None
    if restart is not None:
        span = restart.long().cumsum(0)
        bias = bias + (span[:, None] != span[None, :]).float()[None] * MASKED
        restarts = 1 - restart.float().view(1, -1, 1)
    return Causal(triangle, bias, torch.ones_like(index).float().view(1, 1, -1), restarts)


def recent_keys(tokens: int, mmate: MMateConfig, fill: Tensor, copies: int) -> Recent:
    """What all layers of a call of S tokens need of text windows; fill [1] int64: tokens before this call."""
    window, sinks, slots = mmate.text_window, mmate.text_sinks, mmate.text_slots
    number = fill + torch.arange(tokens)
    oldest = number[:, None] - window  # the last one that the ring has lost
    held = newest_in_slots(fill - 1, sinks, window)  # [1, N]
    slot = torch.arange(slots)[None]
    in_ring = (held > oldest) & (slot < fill)
    in_call = (number[None] > oldest) & (number[None] <= number[:, None])
    if sinks:
        in_ring = in_ring | ((slot < sinks) & (slot < fill))
        in_call = in_call | ((number[None] < sinks) & (number[None] <= number[:, None]))
    bias = ((1 - torch.cat([in_ring, in_call], 1).float()) * MASKED)[None]
    index = present_index(fill, fill, fill + tokens - 1, sinks, window)
    beyond = (number >= slots).float().view(1, -1, 1)
    return Recent(_copies(bias, copies, 1), index.view(-1), Mask(beyond, 1 - beyond))


def _heads(state: Tensor) -> Tensor:
    """A state [1, M, d, d] without its batch axis, or one that has none: every view is a copy in XNNPACK."""
    return state if state.ndim == 3 else state.view(state.shape[1:])


def _shaped(state: Tensor, like: Tensor) -> Tensor:
    """A state [M, d, d] with a batch axis where another one has it."""
    return state if like.ndim == 3 else state.view(like.shape)


def _copies(x: Tensor, times: int, axis: int) -> Tensor:
    """X `times` times along an axis; products with 1, because XNNPACK takes no tensor twice into one concatenation."""
    return x if times == 1 else torch.cat([x, *(x * 1.0 for _ in range(times - 1))], axis)
