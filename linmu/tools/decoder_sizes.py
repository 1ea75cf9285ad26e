"""The sizes of a decoder, from a bundle's manifest or a student's config: what forecasts are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linmu.config import MMateConfig
from linmu.errors import InputError
from linmu.formats.manifest import ModelFacts

FLOAT_BYTES = 4
CACHE_BYTES = 2  # the teacher's keys and values, as commonly kept: float16


@dataclass(frozen=True)
class DecoderSizes:
    """The sizes of a decoder that memory depends on."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of the teacher's float16 key/value cache of one sequence."""
        return 2 * self.layers * self.kv_heads * self.head_dim * CACHE_BYTES * tokens

    def prefill_bytes(self, tokens: int) -> int:
        """Rough bytes of what one prefill call of `tokens` tokens keeps at once (float32, one layer at a time).

        Input and residual (2 D), q, k, v before and after the conv (2 (H+2G) d), the repeated k and v and both
        directions' outputs (4 H d), or the MLP's two halves where those are larger.
        """
        packed = (self.heads + 2 * self.kv_heads) * self.head_dim
        mixer = 2 * packed + 4 * self.heads * self.head_dim
        return FLOAT_BYTES * tokens * (2 * self.hidden_size + max(mixer, 2 * self.intermediate_size))

    def state_bytes(self, mmate: MMateConfig) -> int:
        """Bytes of the whole recurrent state of one sequence in float32."""
        state_heads = mmate.state_heads(self.heads, self.kv_heads)
        recurrent = state_heads * self.head_dim**2
        conv = (self.heads + 2 * self.kv_heads) * self.head_dim * (mmate.taps - 1)
        window = 2 * self.kv_heads * mmate.text_slots * self.head_dim
        return FLOAT_BYTES * self.layers * (recurrent + conv + window)


def bundle_sizes(model: ModelFacts) -> DecoderSizes:
    """The sizes that a manifest says; the usual one for an MLP whose size it leaves out."""
    intermediate = model.intermediate_size or 4 * model.hidden_size
    return DecoderSizes(model.layers, model.hidden_size, intermediate, model.heads, model.kv_heads, model.head_dim)


def student_sizes(config: dict[str, Any], folder: Path) -> DecoderSizes:
    """The sizes that a config.json says, its `text_config` where there is one; raises InputError if incomplete."""
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    values: dict[str, Any] = {**config, **(text or {})}
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    if missing := [name for name in names if type(values.get(name)) is not int or values[name] < 1]:
        value = repr(values.get(missing[0]))
        raise InputError(f"{folder / 'config.json'}: {missing[0]}", got=value, expected="a count")
    layers, hidden, intermediate, heads = (values[name] for name in names)
    kv_heads = values.get("num_key_value_heads") or heads
    return DecoderSizes(layers, hidden, intermediate, heads, kv_heads, values.get("head_dim") or hidden // heads)
