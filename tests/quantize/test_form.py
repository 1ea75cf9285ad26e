"""Quantized step forms of tiny students: folding is exact, what must stay float does, errors are as reported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from linmu.calibration.collect import calibrate
from linmu.calibration.record import read_record
from linmu.errors import InputError
from linmu.formats.matrix_format import MatrixFormat, part
from linmu.formats.presets import PRESETS, Preset, Scheme, find_preset
from linmu.model.folders import load_student
from linmu.quantize.form import preset_choice, preset_form, quantize_form
from linmu.quantize.layer import fitting
from linmu.reference.eager import StudentRunner
from linmu.reference.student_manifest import student_manifest
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps
from linmu.verification.players import RunnerPlayer
from tests.folders import student_folder

FAST = {"samples": 4, "decode_tokens": 4, "long_tokens": 4, "state_tokens": 5, "kept_rows": 40}


class Place:
    """A tiny student with its record."""

    def __init__(self, family: str, root):
        self.folder = student_folder(family, root)
        calibrate(self.folder, root / "c.safetensors", allow_random=True, **FAST)
        self.record = read_record(root / "c.safetensors")
        self.model = load_student(self.folder)
        self.form = decoder_form(self.model)
        self.manifest = student_manifest(self.folder, self.model, self.form)

    def logits(self, form=None) -> np.ndarray:
        """Logits of ten forced steps."""
        player = RunnerPlayer(StudentRunner(self.model, form=form), self.manifest)
        return np.stack([player.step(token).copy() for token in range(3, 13)])


@pytest.fixture(scope="module", params=["qwen3_vl", "llama"])
def place(request, tmp_path_factory) -> Place:
    return Place(request.param, tmp_path_factory.mktemp(request.param))


def distance(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("algorithm", ["smoothquant", "awq_lite", "awq_full"])
def test_factors_on_inputs_cancel(place: Place, algorithm: str, monkeypatch) -> None:
    """With rounding switched off, a quantized form computes what the student does, whatever the factors are."""
    from linmu.quantize import layer

    class Unrounded:
        def __init__(self, weight, format, amax=None, input_amax=None, pre=None):
            self.format, self.q, self.scale, self.pre = format, weight, np.ones(format.scale_shape(*weight.shape)), pre
            self.input_scale = None

        def value(self):
            return self.q

    monkeypatch.setattr(layer, "round_matrix", Unrounded)
    format = MatrixFormat("int8", 0, "int8") if algorithm == "smoothquant" else MatrixFormat("int4", 16)
    scheme = Scheme(format, algorithm)
    quantized = quantize_form(place.form, place.record, preset_choice(Preset(scheme)))
    formats = {name: replace(format, input="") for name, format in quantized.form.quantized.items()}
    weights = {name: thunk for name, thunk in quantized.form.weights.items() if not name.endswith("input_scale")}
    form = replace(quantized.form, quantized=formats, weights=weights)
    assert any((thunk() != 1).any() for name, thunk in weights.items() if name.endswith("out_proj.pre"))
    assert distance(place.logits(form), place.logits()) < 1e-5


@pytest.mark.parametrize(("target", "preset"), [(target, name) for target, names in PRESETS.items() for name in names])
def test_presets_are_close_and_reported(place: Place, target: str, preset: str) -> None:
    quantized = preset_form(place.form, place.record, find_preset(target, preset))
    off = distance(place.logits(quantized.form), place.logits())
    assert 1e-4 < off < (1.0 if preset == "int4" else 0.5)  # noise weights are the hardest there are
    assert set(quantized.reports) >= set(quantized.form.quantized)
    for name, format in quantized.form.quantized.items():
        report = quantized.reports[name]
        assert report.precision.startswith(format.weights) and 0 < report.error < 0.5 and not report.reason
    for name, thunk in quantized.form.weights.items():
        short = name.rpartition(".")[2]
        if short in ("controls", "a_log") or short.startswith(("dt_", "decay_", "conv_", "norm", "gates")):
            assert thunk().dtype == torch.float32, name


def test_phones_look_up_integers_too(place: Place) -> None:
    preset = find_preset("ios", "8da4w")
    form = preset_form(place.form, place.record, preset).form
    if place.form.tied:  # the head's
        assert form.quantized["token_embedding"] == MatrixFormat("int8", input="int8_rows")
        return
    assert form.quantized["token_embedding"] == MatrixFormat("int8")  # a scale of every token, nothing is multiplied
    table, found = place.form.weights["token_embedding"]().detach(), TorchOps(form).weights["token_embedding"]
    step = table.abs().amax(1, keepdim=True) / 127
    assert found.shape == table.shape and ((found - table).abs() <= 0.51 * step).all()
    assert all(preset.table is None for target in ("onnx", "jetson") for preset in PRESETS[target].values())


def test_the_forms_json_knows_the_formats(place: Place) -> None:
    quantized = quantize_form(place.form, place.record, preset_choice(find_preset("jetson", "int4"))).form
    again = type(quantized).from_json(quantized.to_json(), quantized.weights)
    assert again.quantized == quantized.quantized and again == replace(quantized, weights=again.weights)


def test_matrices_can_be_left_out(place: Place) -> None:
    scheme = find_preset("jetson", "int8").layers
    chosen = quantize_form(place.form, place.record, lambda name: scheme if name.endswith("down") else None)
    assert {name.rpartition(".")[2] for name in chosen.form.quantized} == {"down"}
    assert distance(place.logits(chosen.form), place.logits()) < 0.2
    left = {name for name, report in chosen.reports.items() if report.precision == "float"}
    assert {name.rpartition(".")[2] for name in left} >= {"in_proj", "gate_up", "out_proj"}


def test_a_group_shrinks_to_what_divides_the_rows() -> None:
    scheme = Scheme(MatrixFormat("int4", 128), "max")
    assert [fitting(scheme, rows)[0].format.group for rows in (256, 192, 96, 48)] == [128, 64, 32, 16]
    assert fitting(scheme, 72) == (None, "72 rows are no multiple of 16")
    assert fitting(None, 72) == (None, "")


def test_a_record_without_a_matrix_is_refused(place: Place) -> None:
    record = replace(place.record, inputs={k: v for k, v in place.record.inputs.items() if k != "layers.1.down"})
    quantized = quantize_form(place.form, record, preset_choice(find_preset("jetson", "int8")))
    with pytest.raises(InputError, match=r"layers\.1\.down.*got nothing"):
        place.logits(quantized.form)


def test_equal_runs_give_equal_integers(place: Place) -> None:
    choose = preset_choice(find_preset("onnx", "int4"))
    first, second = (quantize_form(place.form, place.record, choose).form.weights for _ in range(2))
    for name in first:
        if name.endswith(part("", "q")):
            assert torch.equal(first[name](), second[name]()), name


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="int8, int4, fp8"):
        find_preset("jetson", "int3")


def test_a_form_of_which_nothing_is_quantized_is_the_students(place: Place) -> None:
    found = quantize_form(place.form, place.record, lambda name: None)
    np.testing.assert_array_equal(place.logits(found.form), place.logits())
    assert {report.precision for report in found.reports.values()} == {"float"}
    size = 2 * place.form.hidden * place.form.channels
    assert found.reports["layers.1.in_proj"].stored_bytes == size
