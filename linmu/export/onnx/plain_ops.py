"""The step form's operations in standard ONNX operators only: what TensorRT parses and any runtime runs.

Replaces every fused or recurrent kernel of OnnxOps; the chunked scan is the one of linmu/model/ssm.py. One token
(a decode step) takes the plain recurrence. Restarts are masks, not huge decays (see chunks.py).
"""

from __future__ import annotations

import numpy as np

from linmu.export.onnx.ops import BOOL, OnnxOps
from linmu.export.onnx.sliding_ops import MASKED
from linmu.step.form import DecoderForm


class PlainOps(OnnxOps):
    """OnnxOps without ONNX Runtime's own domain."""

    prefill_steps = False  # plain bundles step with their step graph
    _tokens = ""  # [1]: tokens of a prompt, set by the prefill graph's first operation

    def branch(self, condition, then, otherwise) -> list[str]:
        return then()  # the general path: conditions cost more than they save where graphs are compiled

    def any_vision(self, vision: str) -> str:
        return ""  # nothing asks

    def token_index(self, x: str) -> str:
        self._tokens = self.node("Gather", self.node("Shape", x), self.graph.const([1]))  # [1]
        return super().token_index(x)

    def number(self, value: float) -> str:
        """A float32 constant."""
        return self.graph.const(value, np.float32)

    # ---- projections and norms -----------------------------------------------------------------------------------
    def head(self, x: str, weight: str) -> str:
        if weight in self.form.quantized:
            return self.product(x, weight)
        rows = self.node("Reshape", x, self.shape(-1, self.form.hidden))
        logits = self.node("Gemm", rows, self.graph.weight(weight), transB=1)
        return self.node("Reshape", logits, self.shape(-1, 1, self.form.vocab))

    def _normed(self, x: str, eps: float) -> str:
        """RMSNorm of the last axis without scale."""
        mean = self.node("ReduceMean", self.node("Mul", x, x), self.graph.const([-1]), keepdims=1)
        return self.node("Div", x, self.node("Sqrt", self.node("Add", mean, self.number(eps))))

    def add_rms_norm(self, x: str, update: str | None, weight: str, eps: float) -> tuple[str, str]:
        x = x if update is None else self.add(x, update)
        return self.node("Mul", self._normed(x, eps), self.graph.weight(weight)), x

    def branch_norm(self, x: str, scale: str, heads: int, eps: float) -> str:
        flat = self.pack(self._normed(self.unpack(x, heads), eps), heads)
        channels = self.shape(heads * self.form.head_dim)
        return self.node("Mul", flat, self.node("Reshape", scale, channels))

    def silu(self, x: str) -> str:
        return self.node("Mul", x, self.sigmoid(x))

    # ---- heads and the recurrence --------------------------------------------------------------------------------
    def causal_conv(self, x: str, weight: str, past: str | None) -> tuple[str, str]:
        taps = self.form.mmate.taps
        joined = self.node("Concat", past or self.zero_conv(), x, axis=1)  # [B, K-1+S, C]
        present = self.node(
            "Slice", joined, self.graph.const([1 - taps]), self.graph.const([2**31 - 1]), self.graph.const([1])
        )
        kernel = self.node("Unsqueeze", self.graph.weight(weight), self.graph.const([3]))  # [C, 1, K, 1]
        image = self.node("Unsqueeze", self.node("Transpose", joined, perm=[0, 2, 1]), self.graph.const([3]))
        y = self.node(
            "Conv", image, kernel, self.graph.weight(weight + "_bias"), group=self.form.channels, kernel_shape=[taps, 1]
        )
        return self.node("Transpose", self.node("Squeeze", y, self.graph.const([3])), perm=[0, 2, 1]), present

    def rotary(self, x: str, cos: str, sin: str, index: str, heads: int) -> str:
        axes = self.graph.const([2] if index in self._per_sequence else [0, 2])  # -> [B|1, N, 1, d/2]
        cos, sin = (self.node("Unsqueeze", self.node("Gather", t, index, axis=0), axes) for t in (cos, sin))
        first, second = self.node("Split", self.unpack(x, heads), outputs=2, axis=-1, num_outputs=2)
        turned = (
            self.node("Sub", self.node("Mul", first, cos), self.node("Mul", second, sin)),
            self.node("Add", self.node("Mul", second, cos), self.node("Mul", first, sin)),
        )
        return self.pack(self.node("Concat", *turned, axis=-1), heads)

    def log_decay(self, raw: str, dt_bias: str, scale: str) -> str:
        delta = self.node("Softplus", self.node("Add", raw, self.graph.weight(dt_bias)))
        return self.node("Mul", delta, self.graph.weight(scale))

    def linear_attention(self, q, k, v, g, past, restart, form: DecoderForm) -> tuple[str, str]:
        past = past or self.node("ConstantOfShape", self.shape(1, form.state_heads, form.head_dim, form.head_dim))
        if self.single_token:
            return self._one_step(q, k, v, g, past, form)
        return self._chunked(q, k, v, g, past, restart, form)

    def _one_step(self, q, k, v, g, past, form: DecoderForm) -> tuple[str, str]:
        m, r, d = form.state_heads, form.heads // form.state_heads, form.head_dim
        write = self.node(
            "Mul", self.node("Reshape", k, self.shape(-1, m, d, 1)), self.node("Reshape", v, self.shape(-1, m, 1, d))
        )
        decay = self.node("Reshape", self.node("Exp", g), self.shape(-1, m, 1, 1))
        state = self.node("Add", self.node("Mul", past, decay), write)  # [B, M, d, d]
        y = self.node("MatMul", self.node("Reshape", q, self.shape(-1, m, r, d)), state)
        y = self.node("Reshape", y, self.shape(-1, 1, form.heads * d))
        return self.node("Mul", y, self.number(d**-0.5)), state

    def _chunks(self, x: str, length: str, *shape: int) -> str:
        """[1,S,C] -> [n, L, *shape], zero-padded to whole chunks (decay 1, no write); length: S as [1]."""
        size = self.form.mmate.chunk_size
        pads = self.node("Concat", self.shape(0, 0, 0, 0), self.tail(length, size), self.shape(0), axis=0)
        return self.node("Reshape", self.node("Pad", x, pads), self.shape(-1, size, *shape))

    def running_sum(self, x: str, size: int | None) -> str:
        """Cumulative sums along the last axis, which has `size` elements (None: as many as the graph finds)."""
        return self.node("CumSum", x, self.graph.const(-1))

    def count(self, x: str, axis: int) -> str:
        """0, 1, ... along an axis of x: int64 [size of the axis]."""
        return self.node("Range", self.graph.const(0), self.length(x, axis), self.graph.const(1))

    def _chunked(self, q, k, v, g, past, restart, form: DecoderForm) -> tuple[str, str]:
        m, r, d, size = form.state_heads, form.heads // form.state_heads, form.head_dim, form.mmate.chunk_size
        length = self._tokens if restart is None else self.node("Shape", restart)
        chunks = [self._chunks(x, length, m, d) for x in (k, v)]
        keys, values = (self.node("Transpose", x, perm=[0, 2, 1, 3]) for x in chunks)  # [n, M, L, d]
        queries = self.node("Transpose", self._chunks(q, length, m, r, d), perm=[0, 2, 3, 1, 4])
        queries = self.node("Reshape", queries, self.shape(-1, m, r * size, d))  # [n, M, r*L, d]
        segment = None
        if restart is not None:
            flags = self.node("Cast", self.node("Unsqueeze", restart, self.graph.const([0, 2])), to=1)
            g = self.where(self.node("Cast", flags, to=BOOL), self.number(0.0), g)
            segment = self.running_sum(self._chunks(flags, length), size)  # [n, L] restarts so far
        c = self.running_sum(self.node("Transpose", self._chunks(g, length, m), perm=[0, 2, 1]), size)  # [n, M, L]
        y = self._inside(queries, keys, values, c, segment, form)
        carry_in, carry_out, total = self._carries(c, segment)
        inject = self.node(
            "MatMul", self.node("Transpose", self.node("Mul", keys, self._last(carry_out)), perm=[0, 1, 3, 2]), values
        )  # [n, M, d, d]
        before, state = self._between(past, inject, total, segment, form)
        weight = self.node("Expand", self._between_axes(carry_in), self.shape(1, 1, r, size, 1)) if r > 1 else None
        weight = self.node("Reshape", weight, self.shape(-1, m, r * size, 1)) if weight else self._last(carry_in)
        y = self.add(y, self.node("Mul", self.node("MatMul", queries, before), weight))
        y = self.node("Transpose", self.node("Reshape", y, self.shape(-1, m, r, size, d)), perm=[0, 3, 1, 2, 4])
        y = self.node("Reshape", y, self.shape(1, -1, form.heads * d))
        y = self.node("Slice", y, self.graph.const([0]), length, self.graph.const([1]))
        return self.node("Mul", y, self.number(d**-0.5)), state

    def _last(self, x: str) -> str:
        return self.node("Unsqueeze", x, self.graph.const([-1]))

    def _between_axes(self, x: str) -> str:
        return self.node("Unsqueeze", x, self.graph.const([2, 4]))  # [n, M, L] -> [n, M, 1, L, 1]

    def _inside(self, queries, keys, values, c, segment, form: DecoderForm) -> str:
        """Attention-like sum inside each chunk: [n, M, r*L, d]."""
        m, r, size = form.state_heads, form.heads // form.state_heads, form.mmate.chunk_size
        rows, columns = self.graph.const([3]), self.graph.const([2])
        strict = segment is not None  # the backward direction: no token sees itself
        allowed = self.graph.const(np.tril(np.ones((1, 1, size, size), bool), -1 if strict else 0), bool)
        if segment is not None:
            same_span = self.node(
                "Equal",
                self.node("Unsqueeze", segment, self.graph.const([1, 3])),
                self.node("Unsqueeze", segment, self.graph.const([1, 2])),
            )
            allowed = self.node("And", allowed, same_span)
        gap = self.node("Sub", self.node("Unsqueeze", c, rows), self.node("Unsqueeze", c, columns))
        decay = self.node("Exp", self.where(allowed, gap, MASKED))  # mask before exp; [n, M, L, L]
        scores = self.node("MatMul", queries, self.node("Transpose", keys, perm=[0, 1, 3, 2]))  # [n, M, r*L, L]
        if r > 1:
            scores = self.node("Reshape", scores, self.shape(-1, m, r, size, size))
            scores = self.node("Mul", scores, self.node("Unsqueeze", decay, self.graph.const([2])))
            scores = self.node("Reshape", scores, self.shape(-1, m, r * size, size))
        else:
            scores = self.node("Mul", scores, decay)
        return self.node("MatMul", scores, values)

    def _carries(self, c: str, segment: str | None) -> tuple[str, str, str]:
        """Decay from the chunk's start [n,M,L], to its end [n,M,L], and its log-decay in total [n,M]."""
        end = self.node("Gather", c, self.graph.const([-1]), axis=2)  # [n, M, 1]
        into, out = self.node("Exp", c), self.node("Exp", self.node("Sub", end, c))
        if segment is not None:
            seg = self.node("Unsqueeze", segment, self.graph.const([1]))
            last = self.node("Gather", seg, self.graph.const([-1]), axis=2)
            into = self.where(self.node("Equal", seg, self.number(0.0)), into, 0.0)
            out = self.where(self.node("Equal", seg, last), out, 0.0)
        return into, out, self.node("Squeeze", end, self.graph.const([2]))

    def _between(self, past, inject, total, segment, form: DecoderForm) -> tuple[str, str]:
        """States before every chunk [n,M,d,d] and after the last [1,M,d,d], by one small matrix over chunks.

        Its cost grows with the square of the number of chunks; callers bound it by cutting long prompts into pieces.
        """
        m, d = form.state_heads, form.head_dim
        sums = self.running_sum(self.node("Transpose", total, perm=[1, 0]), None)  # [M, n]
        sums = self.node("Concat", self.graph.const(np.zeros((m, 1)), np.float32), sums, axis=1)  # [M, n+1]
        rows, columns = self.graph.const([2]), self.graph.const([1])
        gap = self.node("Sub", self.node("Unsqueeze", sums, rows), self.node("Unsqueeze", sums, columns))
        place = self.count(sums, 1)
        allowed = self.node(
            "GreaterOrEqual",
            self.node("Unsqueeze", place, self.graph.const([1])),
            self.node("Unsqueeze", place, self.graph.const([0])),
        )
        if segment is not None:
            restarts = self.node("Gather", segment, self.graph.const([-1]), axis=1)  # [n, 1] restarts in each chunk
            restarts = self.running_sum(self.node("Transpose", restarts, perm=[1, 0]), None)  # [1, n]
            restarts = self.node("Concat", self.graph.const([[0.0]], np.float32), restarts, axis=1)  # [1, n+1]
            same_span = self.node("Equal", self.node("Transpose", restarts, perm=[1, 0]), restarts)
            allowed = self.node("And", allowed, same_span)
        decay = self.node("Exp", self.where(allowed, gap, MASKED))  # [M, n+1, n+1]
        sources = self.node("Concat", past, inject, axis=0)  # [n+1, M, d, d]
        sources = self.node("Reshape", self.node("Transpose", sources, perm=[1, 0, 2, 3]), self.shape(m, -1, d * d))
        states = self.node("Reshape", self.node("MatMul", decay, sources), self.shape(m, -1, d, d))
        states = self.node("Transpose", states, perm=[1, 0, 2, 3])  # [n+1, M, d, d]
        first, last = self.graph.const([0]), self.graph.const([-1])
        before = self.node("Slice", states, first, last, self.graph.const([0]))
        return before, self.node("Gather", states, last, axis=0)

    # ---- windows -------------------------------------------------------------------------------------------------
    def attend_rows(self, q, k, v, bias, form: DecoderForm) -> str:
        split = lambda x, perm: self.node("Transpose", self.unpack(x, form.heads), perm=perm)  # noqa: E731
        scores = self.node("MatMul", split(q, [0, 2, 1, 3]), split(k, [0, 2, 3, 1]))  # [W, H, L, L]
        scores = self.add(self.node("Mul", scores, self.number(form.head_dim**-0.5)), bias)
        y = self.node("MatMul", self.node("Softmax", scores, axis=-1), split(v, [0, 2, 1, 3]))
        return self.pack(self.node("Transpose", y, perm=[0, 2, 1, 3]), form.heads)
