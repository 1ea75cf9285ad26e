"""Bundles with float16 states: verified, half the bytes, their saved states interchangeable with float32 ones."""

from __future__ import annotations

import numpy as np
import pytest

from linmu.cli import main
from linmu.export.targets import write_bundle
from linmu.formats.bundle import open_bundle
from linmu.runtimes.session import load
from linmu.runtimes.tensorrt.device_state import state_arena
from linmu.tools.verify import verify
from tests.folders import student_folder


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return student_folder("qwen2", tmp_path_factory.mktemp("qwen2"), text_window=5)


@pytest.fixture(scope="module")
def bundles(student, tmp_path_factory):
    """(target, state) -> folder."""
    root, found = tmp_path_factory.mktemp("bundles"), {}
    for target, state in (("onnx", "fp32"), ("onnx", "fp16"), ("jetson", "fp16")):
        options = {"compile_check": False} if target == "jetson" else {}
        found[target, state] = root / f"{target}-{state}"
        write_bundle(student, found[target, state], target=target, preset="none", state=state, **options)
    return found


@pytest.mark.parametrize("target", ["onnx", "jetson"])
def test_backends_agree_with_a_reference_that_rounds_too(bundles, student, target) -> None:
    found = verify(bundles[target, "fp16"], student=student, steps=24)
    assert found.ok, found.to_text()
    assert {"onnxruntime", "torch"} <= set(found.backends)
    steps = [check for check in found.checks if check.level == "graph" and "prefill" in check.name and check.worst]
    assert steps and all(check.worst.error < 2e-3 for check in steps)


def test_a_reference_that_does_not_round_is_told_apart(bundles) -> None:
    """The rounding is part of the function: golden vectors of the two bundles differ in their states."""
    files = [open_bundle(bundles["onnx", state]).manifest.files for state in ("fp32", "fp16")]
    for name in ("golden/graphs.safetensors", "golden/rollout.safetensors"):
        assert files[0][name].sha256 != files[1][name].sha256


def test_the_manifest_counts_what_is_stored(bundles) -> None:
    whole, half = (open_bundle(bundles["onnx", state]).manifest for state in ("fp32", "fp16"))
    assert (whole.precision.state, half.precision.state) == ("fp32", "fp16")
    dtypes = {spec.name.rpartition(".")[2]: spec.dtype for spec in half.state}
    assert dtypes == {"conv": "float32", "recurrent": "float16", "key": "float32", "value": "float32"}
    recurrent = sum(4 * int(np.prod(spec.shape[1:])) for spec in whole.state if spec.name.endswith("recurrent"))
    assert half.state_bytes == whole.state_bytes - recurrent // 2
    with load(bundles["onnx", "fp16"], backend="onnxruntime", threads=1) as session:
        assert session.state.nbytes == half.state_bytes
    arena = state_arena(half.state)
    assert sum(place.nbytes for place in arena.places.values()) == half.state_bytes


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_saved_state_moves_between_precisions(bundles, backend, tmp_path) -> None:
    file = tmp_path / "state.safetensors"
    with load(bundles["onnx", "fp32"], backend=backend, threads=1) as session:
        session.generate("Say something.", max_new_tokens=4)
        session.state.save(file)
        exact, logits = session.state.copy().tensors, session.step(7).copy()
    with load(bundles["jetson", "fp16"], backend=backend, threads=1) as session:
        session.state.load(file)
        for name, value in session.state.copy().tensors.items():
            np.testing.assert_array_equal(value, exact[name].astype(value.dtype), err_msg=name)
        session.state.save(file)
        gap = np.abs(session.step(7) - logits).max() / logits.std()
        assert gap < 2e-2
    with load(bundles["onnx", "fp32"], backend=backend, threads=1) as session:
        session.state.load(file)
        for name, value in session.state.copy().tensors.items():
            np.testing.assert_allclose(value, exact[name], rtol=2**-11, atol=2**-25, err_msg=name)


@pytest.mark.parametrize(("state", "said"), [("int8", "is not exported"), ("fp8", "one of fp32, fp16")])
def test_precisions_that_are_not_exported(student, tmp_path, capsys, state, said) -> None:
    assert main(["export", str(student), "-o", str(tmp_path / "bundle"), "--state", state]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and not (tmp_path / "bundle").exists()
