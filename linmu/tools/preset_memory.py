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

from dataclasses import dataclass, replace

from linmu.config import MMateConfig
from linmu.formats.matrix_format import MatrixFormat
from linmu.runtimes.tensorrt.forecast import forecast_build
from linmu.tools.decoder_sizes import DecoderSizes

GROUPS = (128, 64, 32, 16)  # a group that does not divide a matrix shrinks (docs/quantization.md)
ROWS_GROUP = 32  # the smallest behind inputs rounded by row
PHONES = ("android", "ios")
FLOAT_BYTES = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True)
class StoredPreset:
    """How a preset stores things: layers and head as MatrixFormat or float type; what else is float as `floats`."""

    target: str
    name: str
    layers: MatrixFormat | None
    head: MatrixFormat | None
    floats: str


INT8_ROWS = MatrixFormat("int8", input="int8_rows")
# The presets that can be exported (linmu.quantize.presets says what they do); `auto` lies between int4 and fp16.
PRESETS = (
    StoredPreset("onnx", "none", None, None, "fp32"),
    StoredPreset("onnx", "fp16", None, None, "fp16"),
    StoredPreset("onnx", "int8", MatrixFormat("int8", input="int8"), MatrixFormat("int8", 32, "int8_blocks"), "fp16"),
    StoredPreset(
        "onnx", "int4", MatrixFormat("int4", 32, "int8_blocks"), MatrixFormat("int8", 32, "int8_blocks"), "fp16"
    ),
    StoredPreset("jetson", "fp16", None, None, "fp16"),
    StoredPreset("jetson", "int8", MatrixFormat("int8", input="int8"), None, "fp16"),
    StoredPreset("jetson", "fp8", MatrixFormat("fp8", input="fp8"), None, "fp16"),
    StoredPreset("jetson", "int4", MatrixFormat("int4", 128), None, "fp16"),
    *(
        preset
        for target in PHONES
        for preset in (
            StoredPreset(target, "none", None, None, "fp32"),
            StoredPreset(target, "8da8w", INT8_ROWS, INT8_ROWS, "fp32"),
            StoredPreset(target, "8da4w", MatrixFormat("int4", 32, "int8_rows"), INT8_ROWS, "fp32"),
        )
    ),
)


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
        return [*shapes, (s.hidden_size, channels)] if self._windows else shapes

    @property
    def controls(self) -> int:
        """Elements of one layer's dt and gate columns, which always stay float."""
        s = self.sizes
        backward = self.vision and self.mmate.backward
        state_heads = s.heads if self.mmate.decay == "query_head" else s.kv_heads
        return s.hidden_size * (state_heads * (1 + backward) + s.heads * (2 * backward + self._windows))

    @property
    def _windows(self) -> bool:
        return (self.vision and self.mmate.local_swin) or self.mmate.text_window > 0

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
    found = []
    for preset in PRESETS:
        unit = FLOAT_BYTES[preset.floats]
        layers = decoder.sizes.layers * (
            sum(stored_bytes(shape, preset.layers, unit) for shape in decoder.quantizable()) + unit * decoder.controls
        )
        head = stored_bytes((decoder.sizes.hidden_size, decoder.vocab), preset.head, unit)
        table = unit * decoder.table
        if decoder.tied:
            table = head if preset.target in PHONES else 0
        elif preset.target in PHONES and preset.head is not None:
            table = stored_bytes((decoder.sizes.hidden_size, decoder.vocab), MatrixFormat("int8"), unit)
        weights = layers + head + table + unit * rest
        if preset.target == "jetson":
            running, build = 2 * (layers + head) + unit * rest + state, forecast_build(layers + head, 0).peak_bytes
        else:
            running, build = weights + state, 0
        found.append(PresetMemory(preset.target, preset.name, weights, running, build))
    return tuple(found)


def stored_bytes(shape: tuple[int, int], format: MatrixFormat | None, float_bytes: int) -> int:
    """Bytes of a matrix [in, out]; it stays float where no group divides its rows."""
    rows, columns = shape
    if format is None:
        return float_bytes * rows * columns
    if not format.group:
        return format.stored_bytes(rows, columns)
    smallest = ROWS_GROUP if format.input == "int8_rows" else GROUPS[-1]
    group = next((size for size in GROUPS if smallest <= size <= format.group and rows % size == 0), None)
    if group is None:
        return float_bytes * rows * columns
    return replace(format, group=group).stored_bytes(rows, columns)
