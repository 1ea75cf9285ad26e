"""The text window as ONNX nodes, in standard operators for all tables of operations (linmu.model.sliding).

Indices and masks are the same in all layers: equal nodes are made once in a graph. Integer divisions have positive
operands only. Names: W, T, N = T + W slots; S tokens of a call, fill [B] tokens before it; r = H / G.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from linmu.export.onnx.graph_builder import GraphBuilder
from linmu.step.form import DecoderForm

MASKED = -1e30  # added to scores; exp() of it is 0


@dataclass(frozen=True)
class OneToken:
    """Of a decode step: beyond [B,1,1] bool; written [B,1,N,1] bool, the slot that it writes; bias [B,1,1,N]."""

    beyond: str
    written: str
    bias: str


@dataclass(frozen=True)
class Blocks:
    """Of a prompt: beyond [1,S,1] bool; present [N], what slots hold afterwards; S, L and n [1]; index and bias."""

    beyond: str
    present: str
    length: str
    size: str
    number: str
    index: str
    bias: str


@dataclass(frozen=True)
class EitherLength:
    """Of a graph that takes prompts of one sequence and single tokens of many; alone [1] bool: which of them it is."""

    beyond: str
    alone: str
    one: OneToken
    many: Blocks


Recent = OneToken | Blocks | EitherLength


class SlidingOps:
    """sliding_attention of linmu.step.ops.Ops."""

    graph: GraphBuilder
    form: DecoderForm
    single_token = False  # set by the step graph's first operation: one token per sequence
    prefill_steps = False  # whether a prefill graph is written to be called with single tokens of many sequences, too

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A standard operator."""
        return self.graph.node(op, inputs, outputs, **attributes)

    def shape(self, *dims: int) -> str:
        """A constant shape."""
        return self.graph.const(dims)

    def branch(self, condition: str, then: Callable[[], list[str]], otherwise: Callable[[], list[str]]) -> list[str]:
        """An If node."""
        return self.graph.branch(condition, then, otherwise)

    def prepare_window(self, x: str, fill: str, form: DecoderForm) -> Recent:
        """What all layers need: indices, masks."""
        if self.single_token:
            return self._one_token(fill)
        length = self.node("Gather", self.node("Shape", x), self.graph.const([1]))  # [1]
        if not self.prefill_steps:
            return self._prompt(fill, length)
        many = self._prompt(self.node("Gather", fill, self.graph.const([0])), length)
        place = self._whole("Unsqueeze", fill, [1, 2])  # [B, 1, 1]
        place = self.node("Add", place, self._whole("Unsqueeze", self._range(length), [0, 2]))  # [B, S, 1]
        beyond = self._whole("GreaterOrEqual", place, form.mmate.text_slots)
        return EitherLength(beyond, self._whole("Equal", length, [1]), self._one_token(fill), many)

    def _one_token(self, fill: str) -> OneToken:
        slots = self.form.mmate.text_slots
        place = self._whole("Unsqueeze", fill, [1, 2])  # [B, 1, 1]
        allowed = self._whole("GreaterOrEqual", self._whole("Unsqueeze", fill, [1, 2, 3]), np.arange(slots))
        beyond = self._whole("GreaterOrEqual", place, slots)
        return OneToken(beyond, self._written(fill), self._bias(allowed))

    def _prompt(self, fill: str, length: str) -> Blocks:
        slots, window = self.form.mmate.text_slots, self.form.mmate.text_window
        place = self._whole("Unsqueeze", self.node("Add", self._range(length), fill), [0, 2])  # [1, S, 1]
        beyond = self._whole("GreaterOrEqual", place, slots)
        size = self._whole("Min", length, [window])
        number = self._whole("Div", self._whole("Add", length, [window - 1]), [window])  # [1]
        index, bias = self._block_index(fill, length, size, number)
        return Blocks(beyond, self._present_index(fill, length), length, size, number, index, bias)

    def beyond_window(self, recent: Recent) -> str:
        """Where something has left the window."""
        return recent.beyond

    def sliding_attention(
        self, q: str, k: str, v: str, past_key: str, past_value: str, recent: Recent, form: DecoderForm
    ) -> tuple[str, str, str]:
        """Causal attention over sinks and the last W tokens -> y, present key and value."""
        if isinstance(recent, EitherLength):
            one, many = recent.one, recent.many
            y, key, value = self.branch(
                recent.alone,
                lambda: list(self.sliding_attention(q, k, v, past_key, past_value, one, form)),
                lambda: list(self.sliding_attention(q, k, v, past_key, past_value, many, form)),
            )
            return y, key, value

        def heads(x: str) -> str:
            return self.node(
                "Transpose", self.node("Reshape", x, self.shape(0, 0, form.kv_heads, form.head_dim)), perm=[0, 2, 1, 3]
            )

        if isinstance(recent, OneToken):
            new, past = (heads(k), heads(v)), (past_key, past_value)
            key, value = (self.node("Where", recent.written, x, y) for x, y in zip(new, past, strict=True))
            return self._one_query(q, key, value, recent.bias), key, value
        keys = self.node("Concat", past_key, heads(k), axis=2)  # [1, G, N+S, d]
        values = self.node("Concat", past_value, heads(v), axis=2)
        key, value = (self.node("Gather", x, recent.present, axis=2) for x in (keys, values))
        return self._blocks(q, keys, values, recent), key, value

    # ---- integers ------------------------------------------------------------------------------------------------
    def _whole(self, op: str, x: str, y: str | int | list | np.ndarray) -> str:
        """An operator on int64 values, one of which may be a constant."""
        return self.node(op, x, y if isinstance(y, str) else self.graph.const(y))

    def _remainder(self, x: str, divisor: int) -> str:
        """X mod divisor, x >= 0."""
        return self._whole("Sub", x, self._whole("Mul", self._whole("Div", x, divisor), divisor))

    def _range(self, stop: str) -> str:
        """0 .. stop - 1 of stop [1]."""
        scalar = self.node("Squeeze", stop, self.graph.const([0]))
        return self.node("Range", self.graph.const(0), scalar, self.graph.const(1))

    def tail(self, length: str, size: int) -> str:
        """What fills `length` [1] up to a whole number of blocks of `size`, with operators on positive numbers only."""
        blocks = self._whole("Div", self._whole("Add", length, [size - 1]), [size])
        return self._whole("Sub", self._whole("Mul", blocks, [size]), length)

    # ---- slots ---------------------------------------------------------------------------------------------------
    @property
    def _cycles(self) -> int:
        """A multiple of W that is at least N: added in front of a division."""
        window = self.form.mmate.text_window
        return window * -(-self.form.mmate.text_slots // window)

    def _slot_of(self, number: str) -> str:
        """The slot of a token's number >= -W (of negative ones: some slot of the ring)."""
        sinks, window = self.form.mmate.text_sinks, self.form.mmate.text_window
        ring = self._whole("Add", self._remainder(self._whole("Add", number, self._cycles - sinks), window), sinks)
        if not sinks:
            return ring
        first = self.node("And", self._whole("GreaterOrEqual", number, 0), self._whole("Less", number, sinks))
        return self.node("Where", first, number, ring)

    def _written(self, fill: str) -> str:
        """[B, 1, N, 1] bool: the slot that a decode step writes."""
        slot = self._whole("Unsqueeze", self._slot_of(fill), [1, 2, 3])
        return self.node("Equal", self.graph.const(np.arange(self.form.mmate.text_slots)[:, None]), slot)

    def _present_index(self, fill: str, length: str) -> str:
        """[N] what every slot holds after a call: rows of past slots | the call's tokens (present_index)."""
        mmate = self.form.mmate
        slots, sinks = np.arange(mmate.text_slots), mmate.text_sinks
        last = self._whole("Sub", self.node("Add", fill, length), [1])  # [1]
        back = self._remainder(self.node("Add", last, self.graph.const(self._cycles - slots)), mmate.text_window)
        newest = self.node("Sub", last, back)  # [N]
        if sinks:
            newest = self.node("Where", self.graph.const(slots < sinks, bool), self.graph.const(slots), newest)
        reached = self.node("GreaterOrEqual", last, self.graph.const(slots))
        written = self.node("And", reached, self.node("GreaterOrEqual", newest, fill))
        inside = self._whole("Add", self.node("Sub", newest, fill), mmate.text_slots)
        return self.node("Where", written, inside, self.graph.const(slots))

    # ---- attention -----------------------------------------------------------------------------------------------
    def _attend(self, q: str, k: str, v: str, bias: str, perm: list[int]) -> str:
        """Softmax attention over the last two axes; `bias` is added to the scores."""
        q = self.node("Mul", q, self.graph.const(self.form.head_dim**-0.5, np.float32))
        scores = self.node("Add", self.node("MatMul", q, self.node("Transpose", k, perm=perm)), bias)
        return self.node("MatMul", self.node("Softmax", scores, axis=-1), v)

    def _bias(self, allowed: str) -> str:
        """0 where a query sees a key, else as good as minus infinity."""
        zero, masked = (self.graph.const(value, np.float32) for value in (0.0, MASKED))
        return self.node("Where", allowed, zero, masked)

    def _one_query(self, q: str, keys: str, values: str, bias: str) -> str:
        """A decode step: q [B,1,H*d] on the N present slots."""
        form = self.form
        q = self.node("Reshape", q, self.shape(-1, form.kv_heads, form.heads // form.kv_heads, form.head_dim))
        y = self._attend(q, keys, values, bias, [0, 1, 3, 2])
        return self.node("Reshape", y, self.shape(-1, 1, form.heads * form.head_dim))

    def _blocks(self, q: str, keys: str, values: str, recent: Blocks) -> str:
        """A prompt in n blocks of L = min(S, W) queries, each with M = T + W + L keys (batch 1)."""
        form = self.form
        groups, repeat, dim = form.kv_heads, form.heads // form.kv_heads, form.head_dim
        keys, values = (self.node("Gather", x, recent.index, axis=2) for x in (keys, values))  # [1, G, n, M, d]
        tail = self.node("Sub", self.node("Mul", recent.number, recent.size), recent.length)
        padding = self.node("Concat", self.shape(0, 0, 0, 0), tail, self.shape(0), axis=0)
        shape = self.node("Concat", recent.number, recent.size, self.shape(groups, repeat, dim), axis=0)
        q = self.node("Transpose", self.node("Reshape", self.node("Pad", q, padding), shape), perm=[2, 3, 0, 1, 4])
        keys, values = (self.node("Transpose", x, perm=[1, 0, 2, 3, 4]) for x in (keys, values))  # [G, 1, n, M, d]
        y = self._attend(q, keys, values, recent.bias, [0, 1, 2, 4, 3])  # [G, r, n, L, d]
        y = self.node("Transpose", y, perm=[2, 3, 0, 1, 4])
        y = self.node("Reshape", y, self.shape(1, -1, form.heads * dim))
        return self.node("Slice", y, self.graph.const([0]), recent.length, self.graph.const([1]))

    def _block_index(self, fill: str, length: str, size: str, number: str) -> tuple[str, str]:
        """What blocks read [n,M] of past slots | the call's tokens, and their bias [n,L,M] (sliding.blocks)."""
        mmate = self.form.mmate
        window, sinks, slots = mmate.text_window, mmate.text_sinks, mmate.text_slots
        begin = self._whole("Unsqueeze", self.node("Mul", self._range(number), size), [1])  # [n, 1]
        query = self._range(size)  # [L]
        key = self._range(self._whole("Add", size, [window]))  # [W + L]
        place = self.node("Add", begin, key)  # [n, W+L] column + W
        newest = self._whole("Sub", length, [1])
        inside = self._whole("Add", self.node("Min", self._whole("Sub", place, window), newest), slots)
        before = self._slot_of(self._whole("Sub", self.node("Add", place, fill), window))
        index = self.node("Where", self._whole("Less", place, window), before, inside)
        offset = self.node("Sub", key, self._whole("Unsqueeze", query, [1]))  # [L, W+L]
        band = self.node("And", self._whole("Greater", offset, 0), self._whole("LessOrEqual", offset, window))
        exists = self._whole("GreaterOrEqual", self.node("Add", place, fill), window)
        seen = self.node("And", band, self._whole("Unsqueeze", exists, [1]))
        allowed = self.node("Or", seen, self._whole("Equal", offset, window))  # [n, L, W+L]
        if not sinks:
            return index, self._bias(allowed)
        sink = self.graph.const(np.arange(sinks))
        new = self._whole("Add", self.node("Min", self.node("Sub", sink, fill), newest), slots)  # [T]
        first = self.node("Where", self.node("Less", sink, fill), sink, new)
        first = self.node("Expand", first, self.node("Concat", number, self.shape(sinks), axis=0))
        token = self.node("Add", self._whole("Unsqueeze", self.node("Add", begin, query), [2]), fill)  # [n, L, 1]
        left = self.node("GreaterOrEqual", token, self.graph.const(np.arange(sinks) + window))
        return (
            self.node("Concat", first, index, axis=1),
            self._bias(self.node("Concat", left, allowed, axis=2)),
        )
