"""A student's step form and a calibration record -> the quantized step form, layer by layer when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from linmu.calibration.record import CalibrationRecord
from linmu.formats.matrix_format import MatrixFormat, part
from linmu.formats.presets import LAYER_MATRICES, Preset, Scheme
from linmu.quantize.layer import LayerQuantizer, MatrixReport, fitting
from linmu.quantize.rounding import relative_error, round_matrix
from linmu.quantize.state_choice import BudgetReport
from linmu.step.form import DecoderForm

if TYPE_CHECKING:
    from linmu.step.form import Weight

UNCHANGED = ("swin", "out_proj", "down")  # no factor is folded into these where they stay float

Choose = Callable[[str], Scheme | None]


@dataclass
class QuantizedForm:
    """The form, and a report by matrix that fills as layers are read (`form.weights` are thunks).

    budget: what led to these precisions, where a byte budget did.
    """

    form: DecoderForm
    reports: dict[str, MatrixReport] = field(default_factory=dict)
    budget: BudgetReport | None = None


def preset_choice(preset: Preset) -> Choose:
    """Every matrix as the preset says."""
    return lambda name: preset.head if name in ("head", "token_embedding") else preset.layers


def quantize_form(
    form: DecoderForm, record: CalibrationRecord, choose: Choose, table: Scheme | None = None
) -> QuantizedForm:
    """The form with the chosen matrices as integers and scales; unchosen ones stay float.

    table: for a table of embeddings that is not the head; nothing is multiplied by it, it is only looked up. One layer
    is held at a time. Raises InputError when the record does not know a matrix, or knows it in other sizes.
    """
    quantized = QuantizedForm(form)
    formats: dict[str, MatrixFormat] = {}
    weights: dict[str, Weight] = {}
    layers = _Layers(form, record, choose, quantized.reports)
    for name, thunk in form.weights.items():
        scope, _, short = name.rpartition(".")
        if not scope.startswith("layers."):
            weights[name] = thunk
            continue
        scheme = choose(_leader(name, short)) if short in LAYER_MATRICES else None
        scheme = fitting(scheme, _rows(form, thunk, short))[0] if scheme is not None else None
        if scheme is not None:
            formats[name] = scheme.format
        for kind in _kinds(short, scheme):
            as_it_was = kind in UNCHANGED or (kind == "in_proj" and scheme is None)
            quantized_weight = layers.weight(int(scope.split(".")[1]), kind)
            weights[f"{scope}.{kind}"] = _first(thunk, form.channels, kind) if as_it_was else quantized_weight
    head = "token_embedding" if form.tied else "head"
    scheme = choose(head)
    if scheme is not None:
        formats |= _head(head, scheme, form, record, weights, quantized.reports)
    if table is not None and not form.tied:
        formats["token_embedding"] = table.format
        _store_table(table.format, weights, quantized.reports)
    if not formats:  # then it is the student's own form, whose input projections are not cut in two
        return QuantizedForm(form, _all_float(form))
    quantized.form = replace(form, weights=weights, quantized=formats)
    return quantized


def preset_form(form: DecoderForm, record: CalibrationRecord, preset: Preset) -> QuantizedForm:
    """`quantize_form` with everything as the preset says."""
    return quantize_form(form, record, preset_choice(preset), preset.table)


def matrix_elements(form: DecoderForm, name: str) -> int:
    """Numbers in a matrix of the form, of an input projection in q | k | v."""
    rows, columns = form.weights[name]().shape
    return rows * (form.channels if name.endswith("in_proj") else columns)


def _all_float(form: DecoderForm) -> dict[str, MatrixReport]:
    names = [name for name in form.weights if name.rpartition(".")[2] in LAYER_MATRICES]
    return {name: MatrixReport(name, "float", 0.0, 2 * matrix_elements(form, name)) for name in names}


def _leader(name: str, short: str) -> str:
    """The matrix whose choice holds: swin goes with in_proj, on whose input it works."""
    return name.removesuffix(short) + "in_proj" if short == "swin" else name


def _rows(form: DecoderForm, thunk: Weight, short: str) -> int:
    return form.hidden if short in ("in_proj", "swin", "gate_up") else len(thunk())


def _kinds(short: str, scheme: Scheme | None) -> list[str]:
    """Short names of what takes the place of one packed weight."""
    extra = ["controls"] if short == "in_proj" else []
    if scheme is None:
        return [short, *extra]
    kinds = [part(short, "q"), part(short, "scale")]
    if scheme.format.static_input:
        kinds.append(part(short, "input_scale"))
    if short == "out_proj" and scheme.algorithm != "max":
        kinds.append(part(short, "pre"))
    return [*kinds, *extra]


def _first(thunk: Weight, channels: int, kind: str) -> Weight:
    """A matrix that stays float as the form has it; of an input projection q | k | v."""
    return (lambda: thunk()[:, :channels].contiguous()) if kind == "in_proj" else thunk


class _Layers:
    """Quantizes a layer when one of its weights is first asked for; holds integers, not the float matrices."""

    def __init__(self, form: DecoderForm, record: CalibrationRecord, choose: Choose, reports: dict[str, MatrixReport]):
        self.form, self.record, self.choose, self.reports = form, record, choose, reports
        self.done: dict[int, dict[str, np.ndarray]] = {}

    def weight(self, index: int, kind: str) -> Weight:
        """A thunk for one weight of a layer."""
        return lambda: torch.from_numpy(self._layer(index)[kind])

    def _layer(self, index: int) -> dict[str, np.ndarray]:
        if index not in self.done:
            prefix = f"layers.{index}."
            own = {name: thunk for name, thunk in self.form.weights.items() if name.startswith(prefix)}
            floats = {name.removeprefix(prefix): thunk().detach().float().numpy() for name, thunk in own.items()}
            quantizer = LayerQuantizer(self.form, self.record, index, self.choose)
            arrays = quantizer.run(floats)
            self.done[index] = {name: array for name, array in arrays.items() if name not in (*UNCHANGED, "in_proj")}
            self.reports |= {report.name: report for report in quantizer.reports}
        return self.done[index]


def _head(
    head: str,
    scheme: Scheme,
    form: DecoderForm,
    record: CalibrationRecord,
    weights: dict[str, Weight],
    reports: dict[str, MatrixReport],
) -> dict[str, MatrixFormat]:
    """Quantize the head [V, D] as its transpose [D, V]; a tied table of embeddings reads the same integers."""
    fitted, reason = fitting(scheme, form.hidden)
    table = weights.pop(head)
    if fitted is None:
        weights[head] = table
        reports[head] = MatrixReport(head, "float", 0.0, 2 * form.hidden * form.vocab, reason)
        return {}
    statistics = record.of("head", form.hidden)
    weight = table().detach().float().numpy().T
    amax = float(statistics.amax.max()) if fitted.format.static_input else None
    matrix = round_matrix(weight, fitted.format, None, amax)
    error = relative_error(statistics.values["rows"], weight, matrix)
    reports[head] = MatrixReport(head, matrix.format.weights, error, matrix.format.stored_bytes(*weight.shape))
    weights[part(head, "q")] = lambda: torch.from_numpy(np.ascontiguousarray(matrix.q))
    weights[part(head, "scale")] = lambda: torch.from_numpy(np.ascontiguousarray(matrix.scale))
    if matrix.input_scale is not None:
        weights[part(head, "input_scale")] = lambda: torch.from_numpy(matrix.input_scale)
    return {head: fitted.format}


def _store_table(format: MatrixFormat, weights: dict[str, Weight], reports: dict[str, MatrixReport]) -> None:
    """Quantize a table of embeddings [V, D] as its transpose [D, V]: a scale for every token."""
    name = "token_embedding"
    weight = weights.pop(name)().detach().float().numpy().T
    matrix = round_matrix(weight, format)
    error = float(np.linalg.norm(matrix.value() - weight) / np.linalg.norm(weight))
    reports[name] = MatrixReport(name, format.weights, error, format.stored_bytes(*weight.shape))
    weights[part(name, "q")] = lambda: torch.from_numpy(np.ascontiguousarray(matrix.q))
    weights[part(name, "scale")] = lambda: torch.from_numpy(np.ascontiguousarray(matrix.scale))
