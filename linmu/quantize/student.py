"""A student folder, a calibration record and a preset -> the quantized form that an export writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from linmu.calibration.record import record_of
from linmu.formats.presets import AUTO_SCHEMES, find_preset
from linmu.formats.weights_hash import student_weights_hash
from linmu.quantize.auto import choose_by_budget
from linmu.quantize.form import QuantizedForm, preset_form, quantize_form
from linmu.quantize.plan import Quantization
from linmu.step.pack import decoder_form


def quantize_student(
    folder: Path, model: PreTrainedModel, quantization: Quantization, say: Callable[[str], None]
) -> QuantizedForm:
    """Quantize; raises InputError for a record of another student and a budget that is too small.

    The state of "auto" is told in the result's `budget`; the form's own stays what it was.
    """
    form = decoder_form(model)
    record = record_of(quantization.calibration, student_weights_hash(folder))
    if quantization.budget_bytes is None:
        preset = find_preset(quantization.target, quantization.preset)
        return preset_form(form, record, preset if quantization.head else replace(preset, head=None))
    budget = choose_by_budget(
        form,
        record,
        AUTO_SCHEMES[quantization.target],
        quantization.budget_bytes,
        say,
        quantization.head,
        quantization.state,
    )
    quantized = quantize_form(form, record, budget.chosen.schemes.get)
    quantized.budget = budget
    return quantized
