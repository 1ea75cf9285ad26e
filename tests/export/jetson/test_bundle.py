"""Bundles of target jetson: what the manifest says, verified in ONNX Runtime and torch; failures leave nothing."""

from __future__ import annotations

import json

import onnx
import pytest

from linmu.cli import main
from linmu.errors import CheckFailed
from linmu.export.jetson import engine_check
from linmu.export.jetson.bundle import BACKENDS, OPSET
from linmu.formats.bundle import open_bundle
from linmu.formats.precision import Precision
from linmu.runtimes.session import load
from linmu.runtimes.tensorrt import compiler
from linmu.tools.verify import verify
from tests.exports import export_bundle
from tests.folders import student_folder
from tests.tiny import tiny_video


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return student_folder("smolvlm", tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture(scope="module")
def text_student(tmp_path_factory):
    return student_folder("qwen2", tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def bundle(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jetson") / "bundle"
    export_bundle(student, folder, compile_check=False, target="jetson")
    return folder


def test_the_manifest(bundle):
    manifest = open_bundle(bundle).manifest
    assert manifest.target == "jetson" and manifest.backends == BACKENDS
    precision = Precision(
        weights="fp16", floats="fp16", activations="fp16", ops="plain", opset=OPSET, vision_opset=OPSET
    )
    assert manifest.precision == precision
    for spec in manifest.graphs.values():
        model = onnx.load(bundle / spec.file, load_external_data=False)
        assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
    dynamic = {
        name: {spec.name for spec in graph.inputs if any(isinstance(dim, str) for dim in spec.shape)}
        for name, graph in manifest.graphs.items()
    }
    assert {name: set(profile) for name, profile in manifest.profiles.items()} == {
        name: inputs for name, inputs in dynamic.items() if inputs
    }
    assert not dynamic["step"]


def test_windows_of_a_clip_fit_the_rows(bundle):
    """Tile families whose processor takes clips have windows of several frames, too."""
    said = []
    for backend in ("onnxruntime", "torch"):
        with load(bundle, backend=backend) as session:
            said.append(session.generate("What moves?", video=tiny_video(frames=5), max_new_tokens=3).token_ids)
    assert len(said[0]) and said[0] == said[1]


def test_it_agrees_with_its_reference(bundle, student):
    report = verify(bundle, student=student, steps=24)
    assert report.ok, report.to_text()
    assert {"onnxruntime", "torch"} <= set(report.backends)
    same = [check for check in report.checks if check.backend == "torch" and check.level in ("graph", "rollout")]
    same = [check for check in same if check.name != "vision"]  # which runs in ONNX Runtime there too
    assert same and all(check.worst is None or check.worst.error < 1e-5 for check in same)


def test_a_graph_that_rounds_elsewhere_is_told_apart(student, bundle, tmp_path):
    """Half precision costs something, and the reference pays it too: float32 products are not its function."""
    whole = export_bundle(student, tmp_path / "onnx", preset="fp16", plain_ops=True)
    half = open_bundle(bundle).manifest
    assert whole.model.weights_hash == half.model.weights_hash
    assert open_bundle(tmp_path / "onnx").model_hash == open_bundle(bundle).model_hash  # states are exchanged
    for name in ("golden/graphs.safetensors", "golden/rollout.safetensors"):
        assert (tmp_path / "onnx" / name).read_bytes() != (bundle / name).read_bytes()


def test_float32_throughout(text_student, tmp_path):
    manifest = export_bundle(text_student, tmp_path / "bundle", preset="none", compile_check=False, target="jetson")
    assert (manifest.precision.weights, manifest.precision.activations) == ("fp32", "fp32")
    report = verify(tmp_path / "bundle", steps=8, backends=("onnxruntime",))
    assert report.ok and all(check.worst is None or check.worst.tolerance <= 1e-3 for check in report.checks)


def test_the_command_compiles_and_reports(text_student, tmp_path, capsys):
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "bundle"
    assert main(["export", str(text_student), "-o", str(out), "--target", "jetson", "--json"]) == 0
    captured = capsys.readouterr()
    check = json.loads(captured.out)["check"]
    assert check["compiler"].startswith("tensorrt_rtx") and check["capability"] == "SM86"
    assert set(check["graphs"]) == {"prefill", "step"}
    assert all(graph["engine_bytes"] > 0 and graph["peak_bytes"] > 0 for graph in check["graphs"].values())
    assert "compiled by tensorrt_rtx" in captured.err and "peak memory" in captured.err


@pytest.mark.parametrize("family", ["llama", "smolvlm"])
def test_text_windows_with_sinks_compile(family, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    student = student_folder(family, tmp_path, text_window=5, text_sinks=2)
    assert main(["export", str(student), "-o", str(tmp_path / "bundle"), "--target", "jetson"]) == 0
    assert verify(tmp_path / "bundle", steps=12, backends=("onnxruntime",)).ok


def test_a_failed_check_leaves_nothing(text_student, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compiler, "PROGRAM", "tests.export.no_such_program")
    monkeypatch.setattr(engine_check, "installed", lambda name: True)
    with pytest.raises(CheckFailed, match="died while"):
        export_bundle(text_student, tmp_path / "bundle", target="jetson")
    assert main(["export", str(text_student), "-o", str(tmp_path / "bundle"), "--target", "jetson"]) == 1
    assert "error: prefill.onnx: tensorrt_rtx died while compiling" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_skipping_is_said(text_student, tmp_path, capsys):
    arguments = ["export", str(text_student), "-o", str(tmp_path / "bundle"), "--target", "jetson"]
    assert main([*arguments, "--no-compile-check"]) == 0
    assert "not compiled: --no-compile-check" in capsys.readouterr().err
