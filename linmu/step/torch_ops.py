"""The step form's operations in torch: the eager reference of every exported graph (and ExecuTorch's source)."""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from linmu.formats.matrix_format import MatrixFormat, part
from linmu.formats.state_precision import LARGEST_HALF
from linmu.model import ssm
from linmu.model.rotary import rope_tables, rotate
from linmu.model.sliding import sliding_attention
from linmu.step.form import DecoderForm
from linmu.step.streamed import StreamedWeights
from linmu.step.torch_formats import Rounding, matrix_value, round_named


class TorchOps:
    """Implements linmu.step.ops.Ops on torch tensors; weights are read once from the form, unless it is streamed."""

    def __init__(self, form: DecoderForm):
        streamed = StreamedWeights(form) if form.streamed else None
        self.weights: MutableMapping[str, Tensor] = (
            {name: thunk().detach() for name, thunk in form.weights.items()} if streamed is None else streamed
        )
        self.hidden = torch.zeros(1, 0, form.hidden)
        self.inputs: dict[str, tuple[MatrixFormat, Tensor]] = {}  # how the input of a quantized matrix is rounded
        self.rounding: Rounding = round_named
        for name, format in form.quantized.items():
            if name in ("head", "token_embedding"):
                self.weights[name] = matrix_value(self.weights, name, format).T  # tables are [V, D]
            elif streamed is None:
                self.weights[name] = matrix_value(self.weights, name, format)
            else:
                streamed.stream(name, partial(matrix_value, streamed, name, format))
            if format.input:
                # blocks have scales of their own
                scale = self.weights[part(name, "input_scale")] if format.static_input else torch.ones(())
                self.inputs[name] = (format, scale)

    def enter(self, scope: str) -> None:
        """Nothing to name when run eagerly."""

    def branch(self, condition, then, otherwise) -> list[Tensor]:
        return then() if bool(condition) else otherwise()

    def one_or_many(self, build) -> list[Tensor]:
        return build()

    def embed(self, ids: Tensor, weight: str) -> Tensor:
        return functional.embedding(ids, self.weights[weight])

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        """The matrix product behind `linear` and `head`."""
        return x @ y

    def head(self, x: Tensor, weight: str) -> Tensor:
        return self.product(self.matrix_input(x, weight), self.weights[weight].T)

    def matrix_input(self, x: Tensor, weight: str) -> Tensor:
        """The input of a product as its matrix sees it: as it is, or scaled and rounded (matrix_format)."""
        factor = self.weights.get(part(weight, "pre"))
        x = x if factor is None else x * factor
        return self.rounding(weight, x, *self.inputs[weight]) if weight in self.inputs else x

    def rounded(self, x: Tensor, weight: str) -> Tensor:
        return self.matrix_input(x, weight)

    def linear(self, x: Tensor, weight: str) -> Tensor:
        return self.multiply(self.matrix_input(x, weight), weight)

    def multiply(self, x: Tensor, weight: str) -> Tensor:
        y = self.product(x, self.weights[weight])
        bias = self.weights.get(weight + "_bias")
        return y if bias is None else y + bias

    def add_rms_norm(self, x: Tensor, update: Tensor | None, weight: str, eps: float) -> tuple[Tensor, Tensor]:
        x = x if update is None else x + update
        return functional.rms_norm(x, x.shape[-1:], self.weights[weight], eps), x

    def head_norm(self, x: Tensor, weight: str, form: DecoderForm) -> Tensor:
        scale = self.weights[weight]
        normed = functional.rms_norm(x.unflatten(-1, (form.heads, -1)), (form.head_dim,), None, form.mmate.norm_eps)
        return (normed.flatten(-2) * scale).to(scale.dtype)

    def qk_norm(self, qkv: Tensor, weight: str, form: DecoderForm) -> Tensor:
        qk, v = qkv.split([(form.heads + form.kv_heads) * form.head_dim, form.kv_heads * form.head_dim], -1)
        normed = functional.rms_norm(qk.unflatten(-1, (-1, form.head_dim)), (form.head_dim,), None, form.qk_norm_eps)
        return torch.cat([(normed * self.weights[weight]).flatten(-2), v], -1)

    def split(self, x: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
        return list(x.split(list(sizes), -1))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def add_bias(self, x: Tensor, weight: str) -> Tensor:
        return x + self.weights[weight]

    def scale_channels(self, x: Tensor, weight: str) -> Tensor:
        return x * self.weights[weight]

    def sigmoid(self, x: Tensor) -> Tensor:
        return x.sigmoid()

    def where(self, mask: Tensor, x: Tensor, other: Tensor | float) -> Tensor:
        return torch.where(mask, x, other)

    def silu_mul(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return functional.silu(gate) * up

    def item(self, x: Tensor, index: int) -> Tensor:
        return x[index]

    def last_token(self, x: Tensor) -> Tensor:
        self.hidden = x  # of every token: what verification compares
        return x[:, -1:]

    def token_index(self, x: Tensor) -> Tensor:
        return torch.arange(x.shape[1], device=x.device)

    def batch_index(self, position_ids: Tensor, form: DecoderForm) -> Tensor:
        return torch.arange(position_ids.shape[-2], device=position_ids.device)[:, None]

    def rope_tables(self, position_ids: Tensor, form: DecoderForm) -> tuple[Tensor, Tensor]:
        rows = position_ids.reshape(form.rope_axes, -1)
        return rope_tables(rows, self.weights["rope"], form.rope_scale, self.weights["norm"].dtype)

    def extend_rows(self, table: Tensor, backward: Tensor) -> Tensor:
        return torch.cat([table, table.new_zeros(backward.shape[1] + 1, table.shape[1])])

    def prepare_layout(self, layout: dict[str, Tensor], form: DecoderForm) -> dict[str, Any]:
        ready: dict[str, Any] = dict(layout)
        windows, segment = layout["windows"], layout["window_segment"]  # [2, W, L]
        allowed = segment[..., :, None] == segment[..., None, :]
        if form.mmate.causal_windows:
            allowed = allowed & (windows[..., None, :] <= windows[..., :, None])
        bias = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
        ready["window_bias"] = bias[:, :, None]
        ready["windows"] = windows.flatten(1)
        ready["any_vision"] = layout["vision"].any()
        ready["vision"] = layout["vision"][None, :, None]
        return ready

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        return x[:, index]

    def take_or_zero(self, x: Tensor, index: Tensor) -> Tensor:
        return functional.pad(x, (0, 0, 0, 1))[:, index]

    def repeat_heads(self, x: Tensor, times: int, head_dim: int) -> Tensor:
        return x if times == 1 else x.unflatten(-1, (-1, head_dim)).repeat_interleave(times, -2).flatten(-2)

    def scale_heads(self, x: Tensor, factor: Tensor, form: DecoderForm) -> Tensor:
        return (x.unflatten(-1, (form.heads, -1)) * factor[..., None]).flatten(-2)

    def blend_heads(self, x: Tensor, other: Tensor, share: Tensor, form: DecoderForm) -> Tensor:
        return self.scale_heads(x, share, form) + self.scale_heads(other, 1 - share, form)

    def causal_conv(self, x: Tensor, weight: str, past: Tensor | None) -> tuple[Tensor, Tensor]:
        taps = self.weights[weight]
        past = x.new_zeros(x.shape[0], taps.shape[0], taps.shape[2] - 1) if past is None else past.mT
        y, present = ssm.causal_conv(x, taps, self.weights[weight + "_bias"], past)
        return y, present.mT

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor, index: Tensor, heads: int) -> Tensor:
        return rotate(x.unflatten(-1, (heads, -1)), cos[index], sin[index]).flatten(-2)

    def log_decay(self, raw: Tensor, dt_bias: str, scale: str) -> Tensor:
        return self.weights[scale] * functional.softplus(raw.float() + self.weights[dt_bias])

    def linear_attention(self, q, k, v, g, past, restart, form: DecoderForm) -> tuple[Tensor, Tensor]:
        q, k, v = (x.unflatten(-1, (-1, form.head_dim)) for x in (q, k, v))
        if past is None:
            past = g.new_zeros(q.shape[0], form.state_heads, form.head_dim, form.head_dim)
        scale = form.head_dim**-0.5
        if q.shape[1] == 1 and restart is None:
            y, state = ssm.step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], past, scale)
            return y.flatten(1)[:, None], state
        batched = None if restart is None else restart[None]
        y, state = ssm.chunked(q, k, v, g, past, scale, batched, form.mmate.chunk_size, strict=restart is not None)
        return y.flatten(2), state

    def read_state(self, stored: Tensor, form: DecoderForm) -> Tensor:
        return stored.float() if form.state == "fp16" else stored

    def write_state(self, state: Tensor, form: DecoderForm) -> Tensor:
        return state.clamp(-LARGEST_HALF, LARGEST_HALF).to(torch.float16) if form.state == "fp16" else state

    def window_attention(self, q, k, v, bias, form: DecoderForm) -> Tensor:
        rows, length = bias.shape[0], bias.shape[-1]
        repeat = form.heads // form.kv_heads
        k, v = self.repeat_heads(k, repeat, form.head_dim), self.repeat_heads(v, repeat, form.head_dim)
        q, k, v = (x.view(rows, length, form.heads, form.head_dim).transpose(1, 2) for x in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return y.transpose(1, 2).reshape(1, rows * length, -1)

    def prepare_window(self, x: Tensor, fill: Tensor, form: DecoderForm) -> Any:
        number = fill[:, None] + torch.arange(x.shape[1], device=x.device)
        return fill, number[..., None] >= form.mmate.text_slots

    def beyond_window(self, recent: Any) -> Tensor:
        return recent[1]

    def sliding_attention(self, qk, v, past_key, past_value, recent, form: DecoderForm):
        q, k = qk.unflatten(-1, (-1, form.head_dim)).split((form.heads, form.kv_heads), 2)
        v = v.unflatten(-1, (-1, form.head_dim))
        valid = torch.ones(q.shape[:2], dtype=torch.bool, device=q.device)
        past = (past_key, past_value, recent[0])
        y, (key, value, _) = sliding_attention(q, k, v, valid, past, form.mmate.text_sinks, form.head_dim**-0.5)
        return y.flatten(2), key, value
