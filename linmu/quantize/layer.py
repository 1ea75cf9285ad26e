"""One decoder layer, quantized: matrices that share an input share a factor on it, folded into what produces the input.

    in_proj, swin   input norm_in(x): the factor goes into norm_in
    gate_up         input norm_post(x): into norm_post
    down            input silu(gate) * up: into the columns of up
    out_proj        a mixture of branches: an explicit factor, `out_proj.pre`
The input projection is cut in two: q | k | v are quantized, dt and the gates (`controls`) stay float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from linmu.calibration.record import CalibrationRecord
from linmu.formats.matrix_format import part
from linmu.formats.presets import LAYER_MATRICES, Scheme
from linmu.quantize.algorithms import find_scales
from linmu.quantize.rounding import QuantizedMatrix, relative_error, round_matrix
from linmu.step.form import DecoderForm

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class MatrixReport:
    """One matrix: precision, relative output error on the sampled rows, bytes stored; why it was left in float."""

    name: str
    precision: str
    error: float
    stored_bytes: int
    reason: str = ""


def fitting(scheme: Scheme | None, rows: int) -> tuple[Scheme | None, str]:
    """The scheme with a group that divides `rows` (smaller than asked for if need be), or None and the reason."""
    if scheme is None:
        return None, ""
    format = scheme.format.fitted(rows)
    if format is None:
        return None, f"{rows} rows are no multiple of {scheme.format.smallest_group}"
    return replace(scheme, format=format), ""


class LayerQuantizer:
    """Quantizes layer `index` of a form; `choose(matrix)` says with which scheme (None: float)."""

    def __init__(
        self, form: DecoderForm, record: CalibrationRecord, index: int, choose: Callable[[str], Scheme | None]
    ):
        self.form, self.record, self.prefix, self.choose = form, record, f"layers.{index}.", choose
        self.reports: list[MatrixReport] = []

    def run(self, weights: Mapping[str, np.ndarray]) -> Arrays:
        """Packed float32 weights of the layer by short name -> the same with quantized parts (`in_proj.q`, ...)."""
        arrays = dict(weights)
        packed = arrays.pop("in_proj")
        arrays["in_proj"], arrays["controls"] = np.split(packed, [self.form.channels], axis=1)
        original: Arrays = {name: arrays[name] for name in LAYER_MATRICES if name in arrays}
        down, factor = self._group(("down",), original)
        if factor is not None:
            self._scale_up(arrays, original, factor)
        shared = tuple(name for name in ("in_proj", "swin") if name in arrays)
        first, factor_in = self._group(shared, original)
        second, factor_post = self._group(("gate_up",), original)
        last, explicit = self._group(("out_proj",), original)
        self._fold(arrays, "norm_in", factor_in)
        if factor_in is not None:
            arrays["controls"] = arrays["controls"] / factor_in[:, None]
        self._fold(arrays, "norm_post", factor_post)
        for name, matrix in (first | second | down | last).items():
            arrays |= self._parts(name, matrix, explicit if name == "out_proj" else None)
            del arrays[name]
        if not second:
            arrays["gate_up"] = original["gate_up"]  # float, but scaled for `down`
        return {name: np.ascontiguousarray(array, array.dtype) for name, array in arrays.items()}

    def _group(self, names: Sequence[str], original: Arrays) -> tuple[dict[str, QuantizedMatrix], np.ndarray | None]:
        """Quantize matrices that share an input -> by name, and the factor that their input needs."""
        rows = len(original[names[0]])
        scheme, reason = fitting(self.choose(self.prefix + names[0]), rows)
        if scheme is None:
            for name in names:
                self.reports.append(_left(self.prefix + name, original[name], reason))
            return {}, None
        joint = np.concatenate([original[name] for name in names], axis=1)
        statistics = self.record.of(self.prefix + names[0], rows)
        scales = find_scales(joint, scheme, statistics)
        scaled = joint if scales.pre is None else joint / scales.pre[:, None]
        edges = np.cumsum([original[name].shape[1] for name in names])[:-1]
        columns = np.split(scaled, edges, axis=1)
        limits = [scales.amax] * len(names) if scales.amax.ndim == 0 else np.split(scales.amax, edges, axis=-1)
        result = {}
        for name, block, amax in zip(names, columns, limits, strict=True):
            result[name] = round_matrix(block, scheme.format, amax, scales.input_amax, scales.pre)
            self.reports.append(self._report(name, original[name], result[name], statistics.values["rows"]))
        return result, scales.pre

    def _report(self, name: str, weight: np.ndarray, matrix: QuantizedMatrix, rows: np.ndarray) -> MatrixReport:
        precision = matrix.format.weights + (f" group {matrix.format.group}" if matrix.format.group else "")
        error = relative_error(rows, weight, matrix)
        return MatrixReport(self.prefix + name, precision, error, matrix.format.stored_bytes(*weight.shape))

    def _scale_up(self, arrays: Arrays, original: Arrays, factor: np.ndarray) -> None:
        """Let `up` produce what `down` now expects."""
        wide = np.concatenate([np.ones_like(factor), factor])
        original["gate_up"] = original["gate_up"] * wide
        if "gate_up_bias" in arrays:
            arrays["gate_up_bias"] = arrays["gate_up_bias"] * wide

    @staticmethod
    def _fold(arrays: Arrays, norm: str, factor: np.ndarray | None) -> None:
        if factor is not None:
            arrays[norm] = arrays[norm] * factor

    @staticmethod
    def _parts(name: str, matrix: QuantizedMatrix, explicit: np.ndarray | None) -> Arrays:
        parts: dict[str, Any] = {part(name, "q"): matrix.q, part(name, "scale"): matrix.scale}
        if matrix.input_scale is not None:
            parts[part(name, "input_scale")] = matrix.input_scale
        if explicit is not None:
            parts[part(name, "pre")] = explicit
        return parts


def _left(name: str, weight: np.ndarray, reason: str) -> MatrixReport:
    return MatrixReport(name, "float", 0.0, 2 * weight.size, reason)
