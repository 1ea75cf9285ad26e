"""What a student's bundle will take in every preset, from its sizes alone: nothing is exported, no weight is read.

Glossary
    weights     matrices of layers, head and embedding table, and the vision tower, as a bundle stores them
    running     weights and one sequence's state, on target jetson with the decoder twice: prefill and step are engines
                of their own; there the embedding table stays on disk, rows of it are looked up
On phones a table that is head and embeddings at once stands twice in the program: once as XNNPACK's matrix, once to be
looked up. One that is only looked up is int8 there in quantized presets.
    building    the forecast peak of `linmu build` for the larger decoder engine
Vectors (norms, biases, conv taps, rotary tables) count as part of the tower, though a bundle has those of the decoder
in float32: below 1% of a model with 100 million parameters, more in tiny ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from linmu.config import MMateConfig
from linmu.formats.matrix_format import MatrixFormat
from linmu.formats.presets import FLOAT_PRESETS, PRESETS, QUANTIZED_FLOATS, Preset
from linmu.runtimes.tensorrt.forecast import forecast_build
from linmu.tools.decoder_sizes import DecoderSizes

PHONES = ("android", "ios")
FLOAT_BYTES = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True)
class StoredPreset:
    """How a preset stores things: layers, head and a table that is no head; what has no format is float as `floats`."""

    target: str
    name: str
    floats: str
    layers: MatrixFormat | None = None
    head: MatrixFormat | None = None
    table: MatrixFormat | None = None


def stored_presets() -> tuple[StoredPreset, ...]:
    """The presets that can be exported, a target's from wide to narrow; `auto` lies between int4 and fp16."""
    presets = []
    for target, floats in FLOAT_PRESETS.items():
        presets += [StoredPreset(target, name, kind) for name, kind in floats.items()]
        quantized = [_stored(target, name, preset) for name, preset in PRESETS[target].items()]
        presets += sorted(quantized, key=_bits, reverse=True)
    return tuple(presets)


def _bits(preset: StoredPreset) -> int:
    return preset.layers.bits if preset.layers is not None else 32


def _stored(target: str, name: str, preset: Preset) -> StoredPreset:
    schemes = (preset.layers, preset.head, preset.table)
    formats = (None if scheme is None else scheme.format for scheme in schemes)
    return StoredPreset(target, name, QUANTIZED_FLOATS[target], *formats)


@dataclass(frozen=True)
class PresetMemory:
    """Bytes of one preset; build_peak_bytes is 0 where nothing is compiled."""

    target: str
    preset: str
    weight_bytes: int
    running_bytes: int
    build_peak_bytes: int


@dataclass(frozen=True)
class Decoder:
    """Sizes that the matrices follow from; `vision`: prompts can hold images; `tied`: head and embeddings are one."""

    sizes: DecoderSizes
    mmate: MMateConfig
    vocab: int
    tied: bool
    vision: bool

    def quantizable(self) -> list[tuple[int, int]]:
        """[in, out] of one layer's matrices: in_proj (q | k | v), swin, out_proj, gate_up, down."""
        s = self.sizes
        mixed = s.heads * s.head_dim
        channels = mixed + 2 * s.kv_heads * s.head_dim
        shapes = [
            (s.hidden_size, channels),
            (mixed, s.hidden_size),
            (s.hidden_size, 2 * s.intermediate_size),
            (s.intermediate_size, s.hidden_size),
        ]
        return [*shapes, (s.hidden_size, channels)] if self.mmate.has_swin(self.vision) else shapes

    @property
    def controls(self) -> int:
        """Elements of one layer's dt and gate columns, which always stay float."""
        sizes = self.sizes
        return sizes.hidden_size * sum(self.mmate.control_widths(sizes.heads, sizes.kv_heads, self.vision))

    @property
    def table(self) -> int:
        """Elements of the embedding table (the head has as many)."""
        return self.vocab * self.sizes.hidden_size

    @property
    def parameters(self) -> int:
        """Elements of all matrices."""
        layer = sum(rows * columns for rows, columns in self.quantizable()) + self.controls
        return self.sizes.layers * layer + (1 if self.tied else 2) * self.table


def preset_memory(decoder: Decoder, parameters: int) -> tuple[PresetMemory, ...]:
    """Every preset for a student of so many parameters in all, vision tower included."""
    state = decoder.sizes.state_bytes(decoder.mmate)
    rest = max(parameters - decoder.parameters, 0)
    memory = []
    for preset in stored_presets():
        unit = FLOAT_BYTES[preset.floats]
        layers = decoder.sizes.layers * (
            sum(stored_bytes(shape, preset.layers, unit) for shape in decoder.quantizable()) + unit * decoder.controls
        )
        head = stored_bytes((decoder.sizes.hidden_size, decoder.vocab), preset.head, unit)
        table = unit * decoder.table
        if decoder.tied:
            table = head if preset.target in PHONES else 0
        elif preset.table is not None:
            table = stored_bytes((decoder.sizes.hidden_size, decoder.vocab), preset.table, unit)
        weights = layers + head + table + unit * rest
        if preset.target == "jetson":
            running, build = 2 * (layers + head) + unit * rest + state, forecast_build(layers + head, 0).peak_bytes
        else:
            running, build = weights + state, 0
        memory.append(PresetMemory(preset.target, preset.name, weights, running, build))
    return tuple(memory)


def stored_bytes(shape: tuple[int, int], format: MatrixFormat | None, float_bytes: int) -> int:
    """Bytes of a matrix [in, out]; it stays float where no group divides its rows."""
    rows, columns = shape
    fitted = None if format is None else format.fitted(rows)
    return float_bytes * rows * columns if fitted is None else fitted.stored_bytes(rows, columns)
