"""What the step form of a student consists of: sizes, packed weights by name, and its state (no graph yet).

Packed names, per layer i (all matrices [in, out], so that x @ W):
    layers.i.in_proj     [D, C + M + M + 3H]   q | k | v | dt forward | dt backward | g_f | g_b | alpha (what exists)
    layers.i.qkv_bias    [C]; gates_bias [3H]; other biases where the teacher has them
    layers.i.conv_f      [C, 1, K]; conv_f_bias [C]; conv_b …        C = (H + 2G) d
    layers.i.norm_f      [H * d] per-head RMSNorm scale of the forward direction; norm_b of the backward one
    layers.i.qk_norm     [H + G, d] the teacher's q_norm and k_norm side by side (Qwen3)
    layers.i.swin        [D, C] q | k | v of Local-Swin
    layers.i.out_proj    [H * d, D]; gate_up [D, 2I]; down [I, D]
    token_embedding      [V, D]; head [V, D] when not tied
    rope                 [P, d/2] radians per position and axis, float32; an angle is the exact product
Of a quantized form (linmu.formats.matrix_format): in_proj is q | k | v alone, the rest of it is layers.i.controls
[D, M + M + 3H]; a quantized matrix W stands as W.q and W.scale (and W.input_scale, W.pre); a quantized table [V, D] as
[D, V].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linmu.config import MMateConfig
from linmu.families import Family, get_family
from linmu.formats.matrix_format import MatrixFormat
from linmu.formats.state_precision import STATE_PRECISIONS
from linmu.specs import StateSpec

if TYPE_CHECKING:
    import torch

    Weight = Callable[[], torch.Tensor]

# The large matrices: stored as float16 on request.
MATRICES = ("in_proj", "controls", "swin", "out_proj", "gate_up", "down", "token_embedding", "head")


UNWRITTEN = ("weights", "streamed", "scratch")  # fields of a form that decoder.json does not have


def is_matrix(name: str) -> bool:
    """Whether a packed weight is one of the large matrices."""
    return name.rpartition(".")[2] in MATRICES


@dataclass(frozen=True)
class DecoderForm:
    """Sizes and switches of one student's decoder; `weights` are thunks, so packing needs no second copy in memory."""

    family: Family
    mmate: MMateConfig
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    tied: bool
    qk_norm_eps: float
    deepstack: int  # decoder layers that add vision features (Qwen3-VL)
    rope_axes: int  # rows of position_ids: 1, or 3 for M-RoPE
    rope_scale: float  # factor on cos and sin (yarn)
    weights: dict[str, Weight]
    quantized: dict[str, MatrixFormat] = field(default_factory=dict)  # empty: all matrices are float
    streamed: bool = False  # too large to hold: whoever computes with it reads a matrix whenever it is used
    scratch: Path | None = None  # where a streamed form may keep matrices between two uses
    state: str = "fp32"  # what recurrent states are rounded to between calls (linmu.formats.state_precision)

    def __post_init__(self) -> None:
        self.mmate.require_carried()

    @property
    def vision(self) -> bool:
        """Whether prompts can hold images."""
        return not self.family.text_only

    @property
    def channels(self) -> int:
        """Conv channels C of q | k | v."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def state_heads(self) -> int:
        """Heads M that own a decay and a state."""
        return self.mmate.state_heads(self.heads, self.kv_heads)

    @property
    def backward(self) -> bool:
        """Whether there is a backward direction."""
        return self.vision and self.mmate.backward

    @property
    def windows(self) -> bool:
        """Whether there are Local-Swin windows over vision tokens."""
        return self.vision and self.mmate.local_swin

    @property
    def mixed(self) -> bool:
        """Whether there is an alpha: windows over vision tokens or over text."""
        return self.mmate.mixes(self.vision)

    @property
    def gates(self) -> int:
        """Width of the gates g_f | g_b | alpha at the end of in_proj."""
        return self.mmate.gate_width(self.heads, self.vision)

    @property
    def in_sizes(self) -> tuple[int, ...]:
        """Widths of in_proj's parts: q | k | v, dt forward, then dt backward and the gates where they exist."""
        return self.channels, *self.mmate.control_widths(self.heads, self.kv_heads, self.vision)

    def to_json(self) -> dict[str, Any]:
        """Everything but the weights and how they are read as plain JSON values (decoder.json)."""
        plain = {x.name: getattr(self, x.name) for x in fields(self) if x.name not in UNWRITTEN}
        formats = {name: format.to_json() for name, format in self.quantized.items()}
        return plain | {"family": self.family.name, "mmate": self.mmate.to_json(), "quantized": formats}

    @classmethod
    def from_json(cls, data: dict[str, Any], weights: dict[str, Weight]) -> DecoderForm:
        """Read `to_json`'s form; raises TypeError on unknown or missing fields."""
        family, mmate = get_family(data["family"]), MMateConfig.from_json(data["mmate"])
        formats = {name: MatrixFormat.from_json(plain) for name, plain in data.get("quantized", {}).items()}
        return cls(**{**data, "family": family, "mmate": mmate, "weights": weights, "quantized": formats})

    def has(self, name: str) -> bool:
        """Whether a packed weight of this name exists."""
        return name in self.weights

    def state_specs(self) -> tuple[StateSpec, ...]:
        """The whole recurrent state, layer by layer (bundle.md, "Graphs and state")."""
        specs = []
        dim, taps = self.head_dim, self.mmate.taps - 1
        for i in range(self.layers):
            conv = (1, taps, self.channels), ("batch", "taps", "channels")
            recurrent = (1, self.state_heads, dim, dim), ("batch", "heads", "key_dim", "value_dim")
            stored = STATE_PRECISIONS[self.state]
            specs.append(StateSpec(f"past.{i}.conv", f"present.{i}.conv", "float32", *conv))
            specs.append(StateSpec(f"past.{i}.recurrent", f"present.{i}.recurrent", stored, *recurrent))
            if self.mmate.text_window:
                ring = (1, self.kv_heads, self.mmate.text_slots, dim)
                for kind in ("key", "value"):
                    axes = ("batch", "heads", "window", "head_dim")
                    specs.append(StateSpec(f"past.{i}.{kind}", f"present.{i}.{kind}", "float32", ring, axes))
        return tuple(specs)
