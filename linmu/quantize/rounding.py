"""Float matrices to integers and scales, given the largest values that an algorithm settled on (numpy)."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import ml_dtypes
import numpy as np

from linmu.formats.matrix_format import LARGEST, MatrixFormat
from linmu.formats.state_precision import LARGEST_HALF

OWN_SCALES = ("int8_blocks", "int8_rows")  # inputs whose scales are found when they are there
SMALLEST_SCALE = 2.0**-24  # the smallest float16 above zero


@dataclass(frozen=True)
class QuantizedMatrix:
    """Integers and scales of W [in, out] (matrix_format); pre [in] or None is multiplied into the input."""

    format: MatrixFormat
    q: np.ndarray
    scale: np.ndarray
    input_scale: np.ndarray | None = None
    pre: np.ndarray | None = None

    def value(self) -> np.ndarray:
        """W as the integers say, float32."""
        if self.format.weights == "fp8":
            return self.q.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * self.scale
        return self.q.astype(np.float32) * spread(self.scale, self.format, len(self.q))

    @property
    def sha256(self) -> str:
        """Hash of the integers in their plain form (int4 one per byte), whatever a target packs them into."""
        return sha256(np.ascontiguousarray(self.q).tobytes()).hexdigest()


def half_scale(amax: np.ndarray, largest: float) -> np.ndarray:
    """Scales amax / largest, each the float16 number that is nearest (never 0), as float32."""
    with np.errstate(over="ignore"):
        scale = (np.asarray(amax, np.float64) / largest).astype(np.float16).astype(np.float32)
    scale = np.minimum(scale, np.float32(LARGEST_HALF))
    return np.maximum(scale, np.float32(SMALLEST_SCALE))


def spread(scale: np.ndarray, format: MatrixFormat, rows: int) -> np.ndarray:
    """Scales as they multiply a matrix of `rows` rows: [rows, out] or broadcastable."""
    return np.repeat(scale, format.group, axis=0) if format.group else scale


def column_amax(weight: np.ndarray, format: MatrixFormat) -> np.ndarray:
    """Largest |w| for every scale of W [in, out]."""
    size = np.abs(weight)
    if format.weights == "fp8":
        return size.max()
    return size.reshape(-1, format.group, size.shape[1]).max(axis=1) if format.group else size.max(axis=0)


def round_matrix(
    weight: np.ndarray,
    format: MatrixFormat,
    amax: np.ndarray | None = None,
    input_amax: float | None = None,
    pre: np.ndarray | None = None,
) -> QuantizedMatrix:
    """Round W [in, out] float32 (already divided by `pre`) to the nearest integers; larger values saturate.

    amax: largest |w| by scale, by default the weight's own. input_amax: largest |x| that the input can take.
    """
    weight = np.asarray(weight, np.float32)
    amax = column_amax(weight, format) if amax is None else amax
    scale = half_scale(amax, LARGEST[format.weights])
    scaled = weight / spread(scale, format, len(weight))
    if format.weights == "fp8":
        q = np.clip(scaled, -448.0, 448.0).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    else:
        low, high = (-8, 7) if format.weights == "int4" else (-127, 127)
        q = np.clip(np.rint(scaled), low, high).astype(np.int8)
    if format.input == "int8_rows" and format.group:  # what XNNPACK keeps; the integers are those of other targets
        scale = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
    input_scale = None
    if format.static_input:
        assert input_amax is not None
        input_scale = half_scale(np.asarray(input_amax), LARGEST[format.input])
    return QuantizedMatrix(format, q, scale, input_scale, pre)


def round_input(x: np.ndarray, format: MatrixFormat, scale: np.ndarray | None) -> np.ndarray:
    """X as the product sees it: scaled, rounded half to even, saturated, scaled back (float32).

    No scale: blocks or rows have their own.
    """
    if scale is None:
        return _round_rows(x) if format.input == "int8_rows" else _round_blocks(x, format.group)
    scaled = x / scale
    if format.input == "fp8":
        return np.clip(scaled, -448.0, 448.0).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    return np.clip(np.rint(scaled), -128, 127).astype(np.float32) * scale


def _round_blocks(x: np.ndarray, group: int) -> np.ndarray:
    blocks = x.reshape(*x.shape[:-1], -1, group).astype(np.float32)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return (np.rint(blocks * inverse) * (largest / np.float32(127))).reshape(x.shape)


def _round_rows(x: np.ndarray) -> np.ndarray:
    low, high = np.minimum(x.min(axis=-1, keepdims=True), 0), np.maximum(x.max(axis=-1, keepdims=True), 0)
    scale = np.where(high > low, (high - low) / np.float32(255), np.float32(1)).astype(np.float32)
    zero = np.clip(np.rint(-128 - low / scale), -128, 127)
    return (np.clip(np.rint(x / scale), -128 - zero, 127 - zero) * scale).astype(np.float32)


def relative_error(x: np.ndarray, weight: np.ndarray, quantized: QuantizedMatrix) -> float:
    """||x W - what the integers give|| / ||x W|| over rows x [N, in], the input's own rounding included."""
    rounded = x if quantized.pre is None else x * quantized.pre
    if quantized.input_scale is not None or quantized.format.input in OWN_SCALES:
        rounded = round_input(rounded, quantized.format, quantized.input_scale)
    exact = x @ weight
    size = float(np.linalg.norm(exact))
    return float(np.linalg.norm(rounded @ quantized.value() - exact)) / max(size, 1e-30)
