"""The sliding window of text (`text_window`) as ONNX nodes, in standard operators for both tables of operations."""

from __future__ import annotations

from typing import Any

import numpy as np

from linmu.export.onnx.graph_builder import GraphBuilder
from linmu.step.form import DecoderForm

MASKED = -1e30  # added to scores; exp() of it is 0


class SlidingOps:
    """sliding_attention of linmu.step.ops.Ops. W = text_window, r = query heads per key/value head."""

    graph: GraphBuilder
    form: DecoderForm
    single_token = False  # set by the step graph's first operation: one token per sequence

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A standard operator."""
        return self.graph.node(op, inputs, outputs, **attributes)

    def shape(self, *dims: int) -> str:
        """A constant shape."""
        return self.graph.const(dims)

    def sliding_attention(
        self, q: str, k: str, v: str, past_key: str, past_value: str, fill: str, form: DecoderForm
    ) -> tuple[str, str, str]:
        """Causal attention over the last W tokens -> y, present key and value; `fill` [B] tokens seen before."""

        def heads(x: str) -> str:
            return self.node(
                "Transpose", self.node("Reshape", x, self.shape(0, 0, form.kv_heads, form.head_dim)), perm=[0, 2, 1, 3]
            )

        keys = self.node("Concat", past_key, heads(k), axis=2)  # [B, G, W+S, d]
        values = self.node("Concat", past_value, heads(v), axis=2)
        window = form.mmate.text_window
        key, value = (self._slice(x, -window, 2**31 - 1, 2) for x in (keys, values))
        y = self._one_query(q, key, value, fill) if self.single_token else self._blocks(q, keys, values, fill)
        return y, key, value

    def tail(self, length: str, size: int) -> str:
        """What fills `length` [1] up to a whole number of blocks of `size`, with operators on positive numbers only."""
        blocks = self.node("Div", self.node("Add", length, self.graph.const([size - 1])), self.graph.const([size]))
        return self.node("Sub", self.node("Mul", blocks, self.graph.const([size])), length)

    def _slice(self, x: str, start: int, stop: int, axis: int) -> str:
        return self.node("Slice", x, self.graph.const([start]), self.graph.const([stop]), self.graph.const([axis]))

    def _attend(self, q: str, k: str, v: str, allowed: str, perm: list[int]) -> str:
        """Softmax attention over the last two axes; `allowed` broadcasts to the scores."""
        scores = self.node("MatMul", q, self.node("Transpose", k, perm=perm))
        scores = self.node("Mul", scores, self.graph.const(self.form.head_dim**-0.5, np.float32))
        masked = self.node("Where", allowed, scores, self.graph.const(MASKED, np.float32))
        return self.node("MatMul", self.node("Softmax", masked, axis=-1), v)

    def _one_query(self, q: str, keys: str, values: str, fill: str) -> str:
        """A decode step: q [B,1,H*d] on the W present keys."""
        form, window = self.form, self.form.mmate.text_window
        q = self.node("Reshape", q, self.shape(-1, form.kv_heads, form.heads // form.kv_heads, form.head_dim))
        first = self.node("Sub", self.graph.const([window - 1]), fill)  # [B] first slot that holds a token
        first = self.node("Unsqueeze", first, self.graph.const([1, 2, 3]))
        allowed = self.node("GreaterOrEqual", self.graph.const(np.arange(window)), first)  # [B, 1, 1, W]
        y = self._attend(q, keys, values, allowed, [0, 1, 3, 2])
        return self.node("Reshape", y, self.shape(-1, 1, form.heads * form.head_dim))

    def _blocks(self, q: str, keys: str, values: str, fill: str) -> str:
        """A prompt in blocks of W queries, each on its own and the former block's keys (batch 1)."""
        form, window = self.form, self.form.mmate.text_window
        groups, repeat, dim = form.kv_heads, form.heads // form.kv_heads, form.head_dim
        length = self.node("Gather", self.node("Shape", q), self.graph.const([1]))
        tail = self.tail(length, window)
        pad_keys = self.node("Concat", self.shape(0, 0, 0, 0, 0, 0), tail, self.shape(0), axis=0)
        pairs = [self._pairs(self.node("Pad", x, pad_keys)) for x in (keys, values)]  # [G, n, 2W, d]
        pad_query = self.node("Concat", self.shape(0, 0, 0, 0), tail, self.shape(0), axis=0)
        q = self.node("Reshape", self.node("Pad", q, pad_query), self.shape(-1, window, groups, repeat, dim))
        q = self.node("Transpose", q, perm=[2, 3, 0, 1, 4])  # [G, r, n, W, d]
        keys, values = (self.node("Unsqueeze", x, self.graph.const([1])) for x in pairs)
        y = self._attend(q, keys, values, self._band(length, tail, fill), [0, 1, 2, 4, 3])
        y = self.node("Transpose", y, perm=[2, 3, 0, 1, 4])
        y = self.node("Reshape", y, self.shape(1, -1, form.heads * dim))
        return self.node("Slice", y, self.graph.const([0]), length, self.graph.const([1]))

    def _pairs(self, x: str) -> str:
        """[1, G, (n+1) W, d] -> [G, n, 2W, d]: every block behind its predecessor."""
        window, shape = (
            self.form.mmate.text_window,
            self.shape(self.form.kv_heads, -1, self.form.mmate.text_window, self.form.head_dim),
        )
        former = self.node("Reshape", self._slice(x, 0, -window, 2), shape)
        own = self.node("Reshape", self._slice(x, window, 2**31 - 1, 2), shape)
        return self.node("Concat", former, own, axis=2)

    def _band(self, length: str, tail: str, fill: str) -> str:
        """[n, W, 2W] bool: the W keys up to the query itself that hold a token."""
        window = self.form.mmate.text_window
        offset = np.arange(2 * window) - np.arange(window)[:, None]
        band = self.graph.const((offset >= 1) & (offset <= window), bool)
        blocks = self.node("Div", self.node("Add", length, tail), self.graph.const([window]))
        scalar = self.node("Squeeze", blocks, self.graph.const([0]))
        starts = self.node(
            "Mul", self.node("Range", self.graph.const(0), scalar, self.graph.const(1)), self.graph.const(window)
        )
        place = self.node(
            "Add", self.node("Unsqueeze", starts, self.graph.const([1])), self.graph.const(np.arange(2 * window))
        )  # [n, 2W] index into past | prompt
        holds_token = self.node("GreaterOrEqual", place, self.node("Sub", self.graph.const([window]), fill))
        own_key = self.graph.const(offset == window, bool)  # padding queries keep themselves: no empty row
        return self.node(
            "Or", self.node("And", band, self.node("Unsqueeze", holds_token, self.graph.const([1]))), own_key
        )
