"""Programs for Core ML and Vulkan: they are compiled here and run on their own systems only, which is said."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("executorch")

from linmu.cli import main  # noqa: E402
from linmu.errors import InputError  # noqa: E402
from linmu.export.phone.delegates import DELEGATES, find_delegate  # noqa: E402
from linmu.export.phone.lowering import LEAST_SHARE, lower  # noqa: E402
from linmu.export.phone.stock import stock_methods  # noqa: E402
from linmu.export.phone.weights import program_weights  # noqa: E402
from linmu.export.targets import write_bundle  # noqa: E402
from linmu.formats.bundle import open_bundle  # noqa: E402
from linmu.model.folders import load_student  # noqa: E402
from linmu.reference.vision import build_vision  # noqa: E402
from linmu.step.pack import decoder_form  # noqa: E402
from linmu.tools.verify import verify  # noqa: E402
from tests.export.phone.students import one_layer  # noqa: E402

MOST = 48


@pytest.mark.parametrize(
    ("options", "words"),
    (
        (("android", "--delegate", "coreml"), ("target 'android'", "'coreml'", "xnnpack, vulkan")),
        (("ios", "--delegate", "vulkan"), ("target 'ios'", "xnnpack, coreml")),
        (("android", "--delegate", "npu"), ("'npu'", "xnnpack, vulkan")),
        (("android", "--delegate", "qnn"), ("qnn", "Qualcomm", "xnnpack or vulkan")),
        (("ios", "--delegate", "coreml", "--calib", "none"), ("quantized", "coreml", "--delegate xnnpack")),
        (("onnx", "--delegate", "xnnpack"), ("option delegate", "onnx")),
    ),
)
def test_what_is_refused(options, words, tmp_path, capsys):
    assert main(["export", "-o", str(tmp_path / "bundle"), "--target", *options]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and all(word in said for word in words), said
    assert not list(tmp_path.iterdir())


def test_every_delegate_is_found_for_its_targets():
    for name, row in DELEGATES.items():
        for target in row.targets:
            if row.missing:
                with pytest.raises(InputError):
                    find_delegate(target, name)
            else:
                assert find_delegate(target, name) == name
    assert find_delegate("ios", None) == find_delegate("android", None, quantized=True) == "xnnpack"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="there it can run")
def test_core_ml_takes_a_whole_program_that_only_apple_runs(tmp_path, monkeypatch, capsys):
    student = one_layer("llama", tmp_path, monkeypatch)
    write_bundle(student, tmp_path / "bundle", target="ios", delegate="coreml")
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.precision.delegate == "coreml"
    methods = manifest.program["methods"]
    assert set(methods) == {"token_embedding", "prefill", "step", "forward"}
    assert all(method["share"] == 1.0 and method["delegates"] for method in methods.values()), methods
    with pytest.raises(InputError, match="no backend of this bundle can run here.*coreml.*Apple"):
        verify(tmp_path / "bundle")
    capsys.readouterr()
    assert main(["run", str(tmp_path / "bundle"), "-p", "What?"]) == 3
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and "coreml" in said and "--delegate xnnpack" in said, said


@pytest.mark.slow
def test_vulkan_takes_what_stock_runners_call(tmp_path, monkeypatch):
    model = load_student(one_layer("smolvlm", tmp_path, monkeypatch))
    form = decoder_form(model)
    tower, grid = build_vision(model, form.family.name), model._prompt_rules.tile
    methods = stock_methods(form, program_weights(form), "model.pte", tower, grid)
    program, reports = lower(methods, {"text_decoder": {"tokens": MOST}}, delegate="vulkan")
    assert len(program.buffer) > 0 and set(reports) == {"text_decoder", "vision_encoder"}
    for name, report in reports.items():
        assert report.macs > 0 and report.delegates > 0 and report.share >= LEAST_SHARE, name
