"""The step form's operations as ONNX nodes, with ONNX Runtime's recurrent and fused kernels (few, large nodes).

The recurrent operators are the ones that ONNX standardises in opset 27; `RECURRENT_DOMAIN` is the one switch from ONNX
Runtime's kernels of today (com.microsoft) to the standard ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from linmu.export.onnx.graph_builder import MICROSOFT, GraphBuilder
from linmu.export.onnx.quantized_ops import QuantizedOps
from linmu.export.onnx.sliding_ops import MASKED, SlidingOps
from linmu.export.onnx.state_ops import StateOps
from linmu.layout.types import SCHEDULES, SHIFTS
from linmu.step.exact_angles import digit_rule, turn_tables
from linmu.step.form import DecoderForm

RECURRENT_DOMAIN = MICROSOFT  # "" once opset 27 is released
RESTART_LOG_DECAY = -1e4  # exp() is exactly 0 in float32
FLOAT, INT64, BOOL = 1, 7, 9  # onnx.TensorProto


class OnnxOps(QuantizedOps, SlidingOps, StateOps):
    """Implements linmu.step.ops.Ops; values are graph value names."""

    prefill_steps = True

    def __init__(self, graph: GraphBuilder, form: DecoderForm):
        self.graph, self.form = graph, form
        self._per_sequence: set[str] = set()  # indices [B,1]; all others are [N]
        self.hidden = ""  # of every token of a prompt: the value that verification looks at

    # ---- small helpers -------------------------------------------------------------------------------------------
    def fused(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """An operator of ONNX Runtime's own domain."""
        return self.graph.node(op, inputs, outputs, domain=MICROSOFT, **attributes)

    def unpack(self, x: str, heads: int) -> str:
        """[B,S,H*d] -> [B,S,H,d]."""
        return self.node("Reshape", x, self.shape(0, 0, heads, self.form.head_dim))

    def pack(self, x: str, heads: int) -> str:
        """[B,S,H,d] -> [B,S,H*d]."""
        return self.node("Reshape", x, self.shape(0, 0, heads * self.form.head_dim))

    def enter(self, scope: str) -> None:
        self.graph.scope = scope

    # ---- projections and norms -----------------------------------------------------------------------------------
    def embed(self, ids: str, weight: str) -> str:
        if weight in self.form.quantized:
            return self.table_rows(ids, weight)
        rows = self.node("Gather", self.graph.raw(weight), ids)
        return rows if self.graph.stored[weight].dtype == np.float32 else self.node("Cast", rows, to=FLOAT)

    def head(self, x: str, weight: str) -> str:
        if weight in self.form.quantized:
            return self.product(x, weight)
        return self.fused("FusedMatMul", x, self.graph.weight(weight), transB=1)

    def linear(self, x: str, weight: str) -> str:
        quantized = weight in self.form.quantized
        y = self.product(x, weight) if quantized else self.node("MatMul", x, self.graph.weight(weight))
        return self.add_bias(y, weight + "_bias") if self.form.has(weight + "_bias") else y

    def rounded(self, x: str, weight: str) -> str:
        """X as it is: every product has a QuantizeLinear of its own, as ONNX Runtime's integer kernels need it."""
        return x

    def multiply(self, x: str, weight: str) -> str:
        return self.linear(x, weight)

    def add_rms_norm(self, x: str, update: str | None, weight: str, eps: float) -> tuple[str, str]:
        scale = self.graph.weight(weight)
        if update is None:
            return self.node("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=eps), x
        outputs = self.fused("SkipSimplifiedLayerNormalization", x, update, scale, outputs=4, used=(0, 3), epsilon=eps)
        return outputs[0], outputs[3]

    def head_norm(self, x: str, weight: str, form: DecoderForm) -> str:
        return self.branch_norm(x, self.graph.weight(weight), form.heads, form.mmate.norm_eps)

    def branch_norm(self, x: str, scale: str, heads: int, eps: float) -> str:
        """RMSNorm of every head of packed x.

        One node for a decode step; for a prompt the general kernel is faster (4 ms against 10 for 2,048 tokens).
        """
        if self.single_token:
            return self.fused("BranchwiseRMSNorm", x, scale, num_branches=heads, epsilon=eps)
        ones = self.graph.const(np.ones(self.form.head_dim), np.float32)
        normed = self.node("SimplifiedLayerNormalization", self.unpack(x, heads), ones, axis=-1, epsilon=eps)
        flat = self.node("Reshape", scale, self.shape(heads * self.form.head_dim))
        return self.node("Mul", self.pack(normed, heads), flat)

    def qk_norm(self, qkv: str, weight: str, form: DecoderForm) -> str:
        heads = form.heads + form.kv_heads
        qk, v = self.split(qkv, (heads * form.head_dim, form.kv_heads * form.head_dim))
        return self.node("Concat", self.branch_norm(qk, self.graph.weight(weight), heads, form.qk_norm_eps), v, axis=-1)

    # ---- elementwise ---------------------------------------------------------------------------------------------
    def split(self, x: str, sizes: tuple[int, ...]) -> list[str]:
        if len(sizes) == 1:
            return [x]
        return self.node("Split", x, self.graph.const(sizes), outputs=len(sizes), axis=-1)

    def add(self, x: str, y: str) -> str:
        return self.node("Add", x, y)

    def add_bias(self, x: str, weight: str) -> str:
        return self.node("Add", x, self.graph.weight(weight))

    def scale_channels(self, x: str, weight: str) -> str:
        return self.node("Mul", x, self.graph.weight(weight))

    def sigmoid(self, x: str) -> str:
        return self.node("Sigmoid", x)

    def one_minus(self, x: str) -> str:
        return self.node("Sub", self.graph.const(1.0, np.float32), x)

    def where(self, mask: str, x: str, other: str | float) -> str:
        return self.node("Where", mask, x, other if isinstance(other, str) else self.graph.const(other, np.float32))

    def silu_mul(self, x: str) -> str:
        gate, up = self.node("Split", x, outputs=2, axis=-1, num_outputs=2)
        return self.node("Mul", self.silu(gate), up)

    def silu(self, x: str) -> str:
        """X * sigmoid(x)."""
        return self.fused("QuickGelu", x, alpha=1.0)

    # ---- tokens, positions, layout -------------------------------------------------------------------------------
    def item(self, x: str, index: int) -> str:
        return self.node("Gather", x, self.graph.const(index), axis=0)

    def last_token(self, x: str) -> str:
        self.hidden = x
        return self.node("Gather", x, self.graph.const([-1]), axis=1)

    def length(self, x: str, axis: int) -> str:
        """One dimension of x as a scalar."""
        return self.node("Gather", self.node("Shape", x), self.graph.const(axis), axis=0)

    def token_index(self, x: str) -> str:
        if not self.prefill_steps:
            return self.node("Range", self.graph.const(0), self.length(x, 1), self.graph.const(1))
        sizes = self.node("Gather", self.node("Shape", x), self.graph.const([0, 1]), axis=0)  # B, S
        count = self.node("Mul", self.length(x, 0), self.length(x, 1))
        rows = self.node("Range", self.graph.const(0), count, self.graph.const(1))
        index = self.node("Reshape", rows, sizes)
        self._per_sequence.add(index)
        return index

    def batch_index(self, position_ids: str, form: DecoderForm) -> str:
        self.single_token = True
        batch = self.length(position_ids, 1 if form.rope_axes == 3 else 0)
        rows = self.node("Range", self.graph.const(0), batch, self.graph.const(1))
        index = self.node("Unsqueeze", rows, self.graph.const([1]))
        self._per_sequence.add(index)
        return index

    def rope_tables(self, position_ids: str, form: DecoderForm) -> tuple[str, str]:
        rows = self.node("Reshape", position_ids, self.shape(form.rope_axes, 1, -1, 1))
        values, above, carry = (self.graph.const(table) for table in digit_rule())
        carried = self.node("Mul", self.node("Div", rows, above), carry)
        digits = self.node("Sub", self.node("Div", rows, values), carried)  # [P, digits, B*S, 1]
        digits = self.node("Cast", digits, to=FLOAT)
        worth = self.graph.const(turn_tables(form.weights["rope"]().detach().numpy()), np.float32)
        sums = self.node("ReduceSum", self.node("Mul", digits, worth), self.graph.const([0, 1]), keepdims=0)
        coarse, fine = self.node("Split", sums, outputs=2, axis=-1, num_outputs=2)
        turns = self.node("Sub", coarse, self.node("Round", coarse))
        angles = self.node("Add", self.node("Mul", turns, self.graph.const(2 * np.pi, np.float32)), fine)
        tables = [self.node("Cos", angles), self.node("Sin", angles)]
        if form.rope_scale != 1.0:
            tables = [self.node("Mul", t, self.graph.const(form.rope_scale, np.float32)) for t in tables]
        return tables[0], tables[1]

    def extend_rows(self, table: str, backward: str) -> str:
        zeros = self.node("Mul", self.node("Gather", backward, self.graph.const(0)), self.graph.const(0))
        return self.node("Concat", table, self.node("Gather", table, zeros), axis=0)

    def prepare_layout(self, layout: dict[str, str], form: DecoderForm) -> dict[str, Any]:
        row = lambda x, i: self.node("Gather", x, self.graph.const(i), axis=0)  # noqa: E731
        ready: dict[str, Any] = {
            name: [row(layout[name], i) for i in range(SCHEDULES)]
            for name in ("order", "inverse", "backward", "backward_slot")
        }
        flat = self.node("Reshape", layout["windows"], self.shape(SHIFTS, -1))
        ready["windows"] = [row(flat, i) for i in range(SHIFTS)]
        ready["window_slot"] = [row(layout["window_slot"], i) for i in range(SHIFTS)]
        ready["window_bias"] = [
            self._window_bias(row(layout["window_segment"], i), row(layout["windows"], i), form) for i in range(SHIFTS)
        ]
        ready["vision"] = self.node("Unsqueeze", layout["vision"], self.graph.const([0, 2]))
        ready["restart"] = layout["restart"]
        ready["any_vision"] = self.any_vision(layout["vision"])
        return ready

    def any_vision(self, vision: str) -> str:
        """The condition of `branch`: whether a flag of [S] is set."""
        flags = self.node("Cast", vision, to=INT64)
        return self.node("Cast", self.node("ReduceMax", flags, keepdims=0), to=BOOL)

    def _window_bias(self, segment: str, index: str, form: DecoderForm) -> str:
        """[W,L] segments -> [W,1,L,L] float32: 0 where a slot may attend, very negative elsewhere."""
        query, key = self.graph.const([1, 3]), self.graph.const([1, 2])
        allowed = self.node("Equal", self.node("Unsqueeze", segment, query), self.node("Unsqueeze", segment, key))
        if form.mmate.causal_windows:
            past = self.node("LessOrEqual", self.node("Unsqueeze", index, key), self.node("Unsqueeze", index, query))
            allowed = self.node("And", allowed, past)
        return self.where(allowed, self.graph.const(0.0, np.float32), MASKED)

    def take(self, x: str, index: str) -> str:
        return self.node("Gather", x, index, axis=1)

    def take_or_zero(self, x: str, index: str) -> str:
        row = self.node("ConstantOfShape", self.node("Concat", self.shape(1, 1), self.width(x), axis=0))
        return self.take(self.node("Concat", x, row, axis=1), index)

    def width(self, x: str) -> str:
        """The last dimension of x as a shape [1]."""
        return self.node("Gather", self.node("Shape", x), self.graph.const([-1]), axis=0)

    # ---- heads and the recurrence --------------------------------------------------------------------------------
    def repeat_heads(self, x: str, times: int, head_dim: int) -> str:
        if times == 1:
            return x
        heads = np.arange(self.form.kv_heads).repeat(times)  # only key/value heads are ever repeated
        if not self.single_token:  # whole heads at a time: 15 times faster than channel by channel
            repeated = self.node("Gather", self.unpack(x, self.form.kv_heads), self.graph.const(heads), axis=2)
            return self.pack(repeated, len(heads))
        channels = (heads[:, None] * head_dim + np.arange(head_dim)).ravel()
        return self.node("Gather", x, self.graph.const(channels), axis=2)

    def scale_heads(self, x: str, factor: str, form: DecoderForm) -> str:
        wide = self.node("Unsqueeze", factor, self.graph.const([-1]))
        return self.pack(self.node("Mul", self.unpack(x, form.heads), wide), form.heads)

    def causal_conv(self, x: str, weight: str, past: str | None) -> tuple[str, str]:
        inputs = [x, self.graph.weight(weight), self.graph.weight(weight + "_bias"), past or self.zero_conv()]
        outputs = self.graph.node("CausalConvWithState", inputs, 2, domain=RECURRENT_DOMAIN, channels_last=1)
        return outputs[0], outputs[1]

    def zero_conv(self) -> str:
        """An empty conv state [1,K-1,C]."""
        shape = (1, self.form.mmate.taps - 1, self.form.channels)
        return self.node("ConstantOfShape", self.shape(*shape))

    def rotary(self, x: str, cos: str, sin: str, index: str, heads: int) -> str:
        rows = index if index in self._per_sequence else self.node("Unsqueeze", index, self.graph.const([0]))
        return self.fused("RotaryEmbedding", x, rows, cos, sin, num_heads=heads)

    def log_decay(self, raw: str, dt_bias: str, scale: str) -> str:
        return self.fused("LinearAttentionGate", raw, self.graph.weight(dt_bias), self.graph.weight(scale))

    def linear_attention(self, q, k, v, g, past, restart, form: DecoderForm) -> tuple[str, str]:
        if restart is not None:
            mask = self.node("Unsqueeze", restart, self.graph.const([0, 2]))
            g = self.where(mask, self.graph.const(RESTART_LOG_DECAY, np.float32), g)
            k, v = self._before(k, v, g, restart)
        outputs = self.graph.node(
            "LinearAttention",
            [q, k, v, past or "", g],
            2,
            domain=RECURRENT_DOMAIN,
            update_rule="gated",
            scale=form.head_dim**-0.5,
            q_num_heads=form.heads,
            kv_num_heads=form.state_heads,
        )
        return outputs[0], outputs[1]

    def _before(self, k: str, v: str, g: str, restart: str) -> tuple[str, str]:
        """Keys exp(g_t) k_{t-1} and values v_{t-1}: the kernel's sum at a token is then that of the tokens before it.

        At a restart the key is exactly 0, as exp(g) is, whatever stands before it: the first token reads itself.
        """
        places = self.node("Range", self.graph.const(0), self.length(restart, 0), self.graph.const(1))
        index = self.node("Max", self.node("Sub", places, self.graph.const(1)), self.graph.const(0))
        heads = self.form.state_heads
        decay = self.node("Unsqueeze", self.node("Exp", g), self.graph.const([-1]))  # [1, N, M, 1]
        k = self.pack(self.node("Mul", self.unpack(self.take(k, index), heads), decay), heads)
        return k, self.take(v, index)

    # ---- windows -------------------------------------------------------------------------------------------------
    def window_attention(self, q, k, v, bias, form: DecoderForm) -> str:
        repeat = form.heads // form.kv_heads
        k, v = self.repeat_heads(k, repeat, form.head_dim), self.repeat_heads(v, repeat, form.head_dim)
        size = self.node("Gather", self.node("Shape", bias), self.graph.const([0, 2]), axis=0)  # W, L
        rows = self.node("Concat", size, self.shape(form.heads * form.head_dim), axis=0)
        q, k, v = (self.node("Reshape", x, rows) for x in (q, k, v))
        y = self.attend_rows(q, k, v, bias, form)
        return self.node("Reshape", y, self.shape(1, -1, form.heads * form.head_dim))

    def attend_rows(self, q, k, v, bias, form: DecoderForm) -> str:
        """Packed q, k, v [W,L,H*d], bias [W,1,L,L] -> [W,L,H*d]."""
        return self.fused("MultiHeadAttention", q, k, v, "", "", bias, num_heads=form.heads)
