"""The text window with ONNX Runtime's kernels: a decode step is one write and one attention (opset 24)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from linmu.export.onnx.sliding_ops import Blocks, SlidingOps
from linmu.step.form import DecoderForm


@dataclass(frozen=True)
class OneSlot:
    """Of one token: beyond [B,1,1] bool; slot [B], what it writes; allowed [B,1,1,N] bool, what it sees."""

    beyond: str
    slot: str
    allowed: str


class FusedWindow(SlidingOps):
    """SlidingOps with `TensorScatter` and `Attention` where there is one token.

    One token's heads are unpacked to where attention takes them, and nothing is packed only to be unpacked.
    """

    def __init__(self) -> None:
        self._apart: dict[str, str] = {}  # what was packed, by its packed form

    def prepare_window(self, x: str, fill: str, form: DecoderForm) -> tuple[OneSlot, Blocks | None]:
        """What all layers need: of one token, and of a prompt where this is no decode step."""
        slots = form.mmate.text_slots
        place = self._whole("Unsqueeze", fill, [1, 2])  # [B, 1, 1]
        seen = self._whole("GreaterOrEqual", self._whole("Unsqueeze", fill, [1, 2, 3]), np.arange(slots))
        one = OneSlot(self._whole("GreaterOrEqual", place, slots), self._slot_of(fill), seen)
        if self.single_token:
            return one, None
        return one, self.prompt_blocks(x, self.node("Gather", fill, self.graph.const([0])))  # of one sequence

    def beyond_window(self, recent: tuple[OneSlot, Blocks | None]) -> str:
        """Where something has left the window."""
        one, blocks = recent
        return one.beyond if self.single_token or blocks is None else blocks.beyond

    def sliding_attention(
        self, qk: str, v: str, past_key: str, past_value: str, recent: Any, form: DecoderForm
    ) -> tuple[str, str, str]:
        """Causal attention over sinks and the last W tokens -> y, present key and value."""
        one, blocks = recent
        heads, owners = form.heads, form.kv_heads
        if not self.single_token:
            q, k = self._parts(qk)
            return self.many_queries(q, k, v, past_key, past_value, blocks)
        apart = self.unpack(qk, heads + owners)  # [B, H + G, 1, d]
        q, k = self.node("Split", apart, self.graph.const([heads, owners]), outputs=2, axis=1)
        key, value = (
            self.node("TensorScatter", past, new, one.slot, axis=2, mode="linear")
            for past, new in ((past_key, k), (past_value, self.unpack(v, owners)))
        )
        y = self.node("Attention", q, key, value, one.allowed, scale=form.head_dim**-0.5)  # [B, H, 1, d]
        return self.pack(y, heads), key, value

    def unpack(self, x: str, heads: int) -> str:
        """[B,S,h*d] -> [B,S,h,d], of one token [B,h,1,d]."""
        dim = self.form.head_dim
        shape = self.shape(0, heads, 1, dim) if self.single_token else self.shape(0, 0, heads, dim)
        return self._apart.get(x) or self.node("Reshape", x, shape)

    def pack(self, x: str, heads: int) -> str:
        """Back from there."""
        wide = heads * self.form.head_dim
        packed: str = self.node("Reshape", x, self.shape(0, 1 if self.single_token else 0, wide))
        self._apart[packed] = x
        return packed

    def per_head(self, factor: str) -> str:
        """[B,S,h] as a factor of unpacked heads."""
        if self.single_token:
            return self.node("Reshape", factor, self.shape(0, -1, 1, 1))
        return self.node("Unsqueeze", factor, self.graph.const([-1]))
