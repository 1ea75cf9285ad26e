"""A whole student in float64: the blocks of reference.py with norms, MLPs, rotary angles and head; one prompt a call.

Written from docs/mmate.md and the teachers' papers; of linmu it takes parameters, settings, and a prompt's layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linmu.model.modeling import decoder_layers
from tests.model.reference import Array, Reference, Spans, arrays, rms_norm, sigmoid


@dataclass(frozen=True)
class Oracle:
    """A student's decoder as float64 arrays."""

    blocks: list[Reference]
    layers: list[dict[str, Array]]
    norm: Array
    head: Array
    eps: float
    frequencies: Array  # [d/2] radians per position
    axes: Array  # [d/2] which row of the positions turns a frequency
    factor: float  # on cos and sin (yarn)

    @classmethod
    def of(cls, student) -> Oracle:
        """Read a linmu student."""
        decoder, head = student.get_decoder(), student.get_output_embeddings().weight.detach().double().numpy()
        rotary = decoder.rotary_emb
        frequencies = rotary.inv_freq.double().numpy()
        layers = [arrays(layer) for layer in decoder_layers(student)]
        norm = decoder.norm
        return cls(
            [Reference.of(layer.self_attn) for layer in decoder_layers(student)],
            layers,
            norm.weight.detach().double().numpy(),
            head,
            norm.variance_epsilon,
            frequencies,
            frequency_axes(student.linmu_family.rope, getattr(rotary, "mrope_section", None), len(frequencies)),
            rotary.attention_scaling,
        )

    def tables(self, positions: Array) -> tuple[Array, Array]:
        """Cos and sin [S,d] of positions [P,S] int64."""
        angles = positions[self.axes].T.astype(np.float64) * self.frequencies  # exact: below 2^53
        angles = np.concatenate([angles, angles], 1)
        return np.cos(angles) * self.factor, np.sin(angles) * self.factor

    def hidden_states(
        self, embeds: Array, positions: Array, spans: Spans, deepstack: Array | None = None
    ) -> list[Array]:
        """Embeddings [S,D], then the residual stream behind every layer, then the last one normed."""
        cos, sin = self.tables(positions)
        x = embeds.astype(np.float64)
        found = [x]
        for number, (block, layer) in enumerate(zip(self.blocks, self.layers, strict=True)):
            u = self._normed(x, layer["input_layernorm.weight"])
            x = x + block.forward(u, cos, sin, spans)[0]
            u = self._normed(x, layer["post_attention_layernorm.weight"])
            gate, up = (_linear(layer, f"mlp.{name}_proj", u) for name in ("gate", "up"))
            x = x + _linear(layer, "mlp.down_proj", gate * sigmoid(gate) * up)
            if deepstack is not None and number < len(deepstack):
                x = x + deepstack[number, 0]
            found.append(x)
        return [*found, self._normed(x, self.norm)]

    def logits(self, hidden: Array) -> Array:
        """Logits [...,V] of normed hidden states [...,D]."""
        return hidden @ self.head.T

    def _normed(self, x: Array, weight: Array) -> Array:
        return np.stack([rms_norm(row, weight, self.eps) for row in x])


def frequency_axes(rope: str, section: list[int] | None, count: int) -> Array:
    """Which axis (time, row, column) turns each of `count` frequencies; all 0 without M-RoPE."""
    if rope == "plain":
        return np.zeros(count, int)
    assert section is not None
    if rope == "mrope":  # in three runs
        return np.repeat(np.arange(3), section)
    return np.array([i % 3 if i < 3 * section[i % 3] else 0 for i in range(count)])  # one after the other, then time


def _linear(weights: dict[str, Array], name: str, x: Array) -> Array:
    y = x @ weights[name + ".weight"].T
    return y + weights[name + ".bias"] if name + ".bias" in weights else y
