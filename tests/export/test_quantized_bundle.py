"""Bundles with int4 weights: exported, verified, and made of the very integers of the quantized reference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from linmu.calibration.collect import calibrate
from linmu.cli import main
from linmu.errors import InputError
from linmu.export.targets import write_bundle
from linmu.formats.bundle import open_bundle
from linmu.formats.decoder_file import map_weights, plain_parts, read_decoder_file
from linmu.formats.matrix_format import part
from linmu.model.folders import load_student
from linmu.quantize.plan import Quantization
from linmu.quantize.student import quantize_student
from linmu.runtimes.session import load
from linmu.tools.verify import verify
from tests.folders import student_folder

FAST = {"samples": 3, "decode_tokens": 3, "long_tokens": 4, "state_tokens": 5, "kept_rows": 40}


@pytest.fixture(scope="module", params=["qwen3_vl", "llama"])
def place(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    student = student_folder(request.param, root)
    calibrate(student, root / "calib.safetensors", allow_random=True, **FAST)
    return student, root / "calib.safetensors"


@pytest.fixture(scope="module", params=["onnx", "jetson"])
def bundle(request, place, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / request.param
    options = {"compile_check": False} if request.param == "jetson" else {}
    report = write_bundle(place[0], out, target=request.param, preset="int4", calibration=place[1], **options)
    return request.param, out, report


def test_backends_agree_with_the_quantized_reference(bundle) -> None:
    found = verify(bundle[1], steps=64)
    assert found.ok, found.to_text()
    rollout = next(check for check in found.checks if check.level == "rollout" and check.backend == "onnxruntime")
    if bundle[0] == "onnx":  # the same function in float32: nothing is left to chance
        assert rollout.worst is not None and rollout.worst.error < 1e-4


def test_the_student_is_compared_through_the_same_integers(bundle, place) -> None:
    found = verify(bundle[1], student=place[0], steps=8)
    assert found.ok, found.to_text()


def test_the_files_hold_the_integers_of_the_reference(bundle, place) -> None:
    target, out, report = bundle
    asked = Quantization(target, "int4", place[1])
    reference = quantize_student(place[0], load_student(place[0]), asked, lambda *_: None).form
    file = read_decoder_file(out)
    stored = plain_parts(map_weights(out, file), file)
    assert set(file.packing) == set(reference.quantized)
    for name in reference.quantized:
        np.testing.assert_array_equal(stored[part(name, "q")], reference.weights[part(name, "q")]().numpy())
        np.testing.assert_array_equal(
            stored[part(name, "scale")].astype(np.float32), reference.weights[part(name, "scale")]().numpy()
        )
    if target == "jetson":  # what a parser of ONNX reads
        model = onnx.load(out / "step.onnx")
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        name = part("layers.1.down", "q")
        read = numpy_helper.to_array(tensors[name]).astype(np.int8)
        np.testing.assert_array_equal(read, reference.weights[name]().numpy())
    assert {row.name for row in report.matrices} >= set(reference.quantized)


def test_the_bundle_says_what_it_is(bundle) -> None:
    target, out, _ = bundle
    precision = open_bundle(out).manifest.precision
    assert precision.weights == "int4" and precision.floats == "fp16"
    assert precision.matrix_inputs == {"onnx": ("int8_blocks",), "jetson": ()}[target]
    assert precision.group_size >= 16
    with load(out, backend="onnxruntime") as session:
        assert session.generate("Say yes.", max_new_tokens=3).token_ids


@pytest.mark.parametrize("target", ["onnx", "jetson"])
def test_int8_with_biases(target, tmp_path) -> None:
    """Qwen2's products have biases, which ONNX Runtime would fuse into what its own int8 rewriting breaks."""
    student, record, out = student_folder("qwen2", tmp_path), tmp_path / "calib.safetensors", tmp_path / "bundle"
    calibrate(student, record, allow_random=True, **FAST)
    options = {"compile_check": False} if target == "jetson" else {}
    write_bundle(student, out, target=target, preset="int8", calibration=record, **options)
    found = verify(out, student=student, steps=16)
    assert found.ok, found.to_text()


def test_records_budgets_and_presets_that_do_not_fit(place, tmp_path, capsys) -> None:
    student, record = place
    out = str(tmp_path / "bundle")
    for arguments, said in (
        (["--quant", "int4"], "needs a calibration record"),
        (["--quant", "int8"], "needs a calibration record"),
        (["--quant", "fp8", "--calib", str(record)], "'fp8'"),  # onnx has none
        (["--quant", "int3", "--calib", str(record)], "'int3'"),
        (["--calib", str(record)], "float preset"),
        (["--quant", "int4", "--calib", str(record), "--plain-ops"], "--plain-ops with a quantized"),
        (["--quant", "int4", "--calib", str(record), "--budget", "9"], "belong together"),
        (["--quant", "auto", "--calib", str(record)], "belong together"),
        (["--quant", "auto", "--calib", str(record), "--budget", "9"], "too small"),
        (["--quant", "int4", "--calib", str(tmp_path / "none.safetensors")], "none.safetensors"),
    ):
        assert main(["export", str(student), "-o", out, *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error, error
        assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"target": "jetson", "compile_check": False}])
def test_a_budget_is_kept(place, tmp_path, options) -> None:
    """With standard operators the head stays float: a tied one is read row by row as the table of embeddings."""
    student, record = place
    full = write_bundle(student, tmp_path / "int4", preset="int4", calibration=record, **options)
    assert verify(tmp_path / "int4", steps=4).ok
    layers = [row for row in full.matrices if not options or row.name.startswith("layers.")]
    budget = int(sum(row.stored_bytes for row in layers) * 1.3)
    report = write_bundle(student, tmp_path / "auto", preset="auto", calibration=record, budget_bytes=budget, **options)
    assert sum(row.stored_bytes for row in report.matrices if not options or row.name.startswith("layers.")) <= budget
    assert len({row.precision for row in report.matrices}) > 1
    found = verify(tmp_path / "auto", steps=4)
    assert found.ok, found.to_text()


def test_another_students_record_is_refused(place, tmp_path) -> None:
    other = student_folder("qwen2", tmp_path)
    with pytest.raises(InputError, match="another student"):
        write_bundle(other, tmp_path / "bundle", preset="int4", calibration=place[1])
