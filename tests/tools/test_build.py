"""`linmu build` with the real compiler (TensorRT-RTX, no GPU): parse, profiles, compile, cache, atomicity, errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import pytest

import linmu.tools.build
from linmu.cli import main
from linmu.errors import BundleError, InputError, MissingComponentError
from linmu.formats.bundle import open_bundle, write_manifest
from linmu.formats.manifest import Manifest
from linmu.runtimes.shape_ranges import bundle_ranges
from linmu.runtimes.tensorrt.builder import capability_name, module_scope
from linmu.runtimes.tensorrt.compiler import compile_engine
from linmu.runtimes.tensorrt.engine import DTYPES
from linmu.runtimes.tensorrt.engine_files import read_index
from linmu.runtimes.tensorrt.plan import check_engine
from linmu.runtimes.tensorrt.toolkit import load_toolkit
from linmu.specs import TensorSpec
from linmu.system.device_facts import HostMemory
from linmu.tools.build import build
from tests.bundles import tiny_bundle
from tests.paths import ROOT
from tests.runtimes.tensorrt.support import CAPABILITY, device_bundle

pytest.importorskip("tensorrt_rtx", reason="pip install 'linmu[jetson-export]'")
QUICK = {"capability": CAPABILITY, "optimization_level": 0, "max_tokens": 128}
ARGUMENTS = ["--compute-capability", CAPABILITY, "--optimization-level", "0", "--max-tokens", "128"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return device_bundle("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def built(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(exported, folder)
    said, phases = [], []
    report = build(folder, **QUICK, say=said.append, progress=lambda *step: phases.append(step))
    return folder, report, said, phases


@pytest.fixture
def bundle(built, tmp_path):
    shutil.copytree(built[0], tmp_path / "bundle")
    return tmp_path / "bundle"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "engines").iterdir())


def test_engines_are_compiled_one_by_one_and_told(built):
    folder, report, said, phases = built
    assert [row.graph for row in report.rows] == ["prefill", "step"] and all(row.built for row in report.rows)
    assert report.tensorrt.startswith("tensorrt_rtx 1.")
    for row in report.rows:
        content = (folder / "engines" / row.file).read_bytes()
        assert len(content) == row.engine_bytes > 10_000 and row.seconds > 0
        assert row.file == f"{row.graph}.{read_index(folder)[row.graph].parts.key}.engine"
    assert len(said) == 2 and all("forecast peak" in line and "available" in line for line in said)
    assert {text.partition(":")[0] for text, _, _ in phases} == {"prefill", "step"}
    assert all(0 < done <= total for _, done, total in phases)
    open_bundle(folder)  # engines are no surplus files


def test_what_is_right_is_kept(capsys, bundle):
    before = {name: (bundle / "engines" / name).stat().st_mtime_ns for name in files(bundle)}
    assert main(["build", str(bundle), *ARGUMENTS, "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert [row["built"] for row in report["rows"]] == [False, False] and report["removed"] == []
    after = {name: (bundle / "engines" / name).stat().st_mtime_ns for name in files(bundle)}
    assert {k: v for k, v in after.items() if k.endswith(".engine")} == {
        k: v for k, v in before.items() if k.endswith(".engine")
    }
    assert main(["build", str(bundle), *ARGUMENTS]) == 0
    assert "up to date" in capsys.readouterr().out


def test_only_a_changed_graph_is_built_again_and_the_old_engine_goes(bundle):
    model = onnx.load(bundle / "step.onnx", load_external_data=False)
    model.doc_string = "changed"
    (bundle / "step.onnx").write_bytes(model.SerializeToString())
    write_manifest(bundle, resized_manifest(bundle))
    old = read_index(bundle)["step"].file
    (bundle / "engines" / ".step.0123.engine.ab.partial").write_bytes(b"half")
    report = build(bundle, **QUICK)
    assert {row.graph: row.reason for row in report.rows} == {"prefill": "", "step": "was built for another graph"}
    assert set(report.removed) == {old, ".step.0123.engine.ab.partial"}
    assert sum(name.endswith(".engine") for name in files(bundle)) == 2


def resized_manifest(bundle: Path):
    """The manifest of a bundle whose files were edited, to be written again with their hashes."""
    document = json.loads((bundle / "manifest.json").read_text())
    for name, entry in document["files"].items():
        entry["bytes"] = (bundle / name).stat().st_size
    return Manifest.from_json(document)


def test_a_damaged_engine_is_built_again_and_a_damaged_index_is_told(bundle):
    file = bundle / "engines" / read_index(bundle)["step"].file
    file.write_bytes(file.read_bytes()[:100])
    assert [row.reason for row in build(bundle, **QUICK).rows] == ["", "is damaged"]
    (bundle / "engines" / "engines.json").write_text("{")
    with pytest.raises(BundleError, match="engines.json cannot be read.*--force"):
        build(bundle, **QUICK)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_no_broken_engine(exported, tmp_path, sign):
    shutil.copytree(exported, tmp_path / "bundle")
    # at TensorRT's own optimisation level and size the compiler runs for several seconds
    command = [sys.executable, "-m", "linmu", "build", str(tmp_path / "bundle"), "--compute-capability", CAPABILITY]
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "prefill: was never built" in process.stderr.readline()
    while not (compilers := children(process.pid)):
        time.sleep(0.01)
    process.send_signal(sign)
    _, error = process.communicate(timeout=60)
    assert process.returncode == (130 if sign == signal.SIGINT else -sign)
    if sign == signal.SIGINT:
        assert error.strip().splitlines()[-1] == "error: interrupted" and files(tmp_path / "bundle") == []
    assert not any(name.endswith(".engine") for name in files(tmp_path / "bundle"))
    assert read_index(tmp_path / "bundle") == {}
    for _ in range(100):  # whoever asked is gone: nobody compiles on
        if not any(Path(f"/proc/{child}").exists() for child in compilers):
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"still compiling: {compilers}")


def children(parent: int) -> list[int]:
    """Processes that `parent` started."""
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_a_node_that_tensorrt_does_not_know_is_named(bundle):
    model = onnx.load(bundle / "step.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.name.startswith("layers.0."))
    node.op_type, node.domain = "Abacus", "example.org"
    model.opset_import.append(onnx.helper.make_opsetid("example.org", 1))
    (bundle / "step.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError) as caught:
        compile_engine(bundle / "step.onnx", {}, flavour="tensorrt_rtx", capability=CAPABILITY)
    message = str(caught.value)
    assert f"cannot parse node {node.name!r}, Abacus, layer 0" in message and "\n" not in message


def test_the_networks_of_tensorrt_have_the_manifests_inputs_and_outputs(exported):
    """What an engine of them will say of itself, as far as it can be known without a GPU."""
    toolkit, manifest = load_toolkit("tensorrt_rtx"), open_bundle(exported).manifest
    for graph, ranges in bundle_ranges(manifest, 128).items():
        spec = manifest.graphs[graph]
        builder = toolkit.trt.Builder(toolkit.logger)
        network = builder.create_network(1 << int(toolkit.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = toolkit.trt.OnnxParser(network, toolkit.logger)
        assert parser.parse_from_file(str(exported / spec.file))
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        assert not any(tensor.is_shape_tensor for tensor in inputs)  # those would need values in their profile
        sides = [[TensorSpec(t.name, DTYPES[t.dtype.name], tuple(t.shape)) for t in side] for side in (inputs, outputs)]
        check_engine(graph, spec, ranges, *sides)
        with pytest.raises(BundleError, match="past.0.conv"):
            wrong = [replace(t, shape=(*t.shape[:-1], 7)) if t.name == "past.0.conv" else t for t in sides[0]]
            check_engine(graph, spec, ranges, wrong, sides[1])


def test_scopes_of_nodes():
    assert module_scope("layers.3.MatMul_2") == "layer 3"
    assert module_scope("vision/blocks.layers/11/attn") == "layer 11"
    assert module_scope("final.Mul") == "final" and module_scope("Mul_4") == ""


def test_what_does_not_fit_is_refused_before_it_is_tried(exported, tmp_path, monkeypatch):
    shutil.copytree(exported, tmp_path / "bundle")
    monkeypatch.setattr(linmu.tools.build, "host_memory", lambda: HostMemory(2**30, 2**28))
    with pytest.raises(InputError, match="prefill engine would run out of memory; got 256.0 MiB"):
        build(tmp_path / "bundle", **QUICK)
    assert files(tmp_path / "bundle") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capability": "8.7"}, "cannot compile for compute capability 8.7.*SM86"),
        ({"capability": "orin"}, "major.minor"),
        ({"max_tokens": 3}, "at least 128"),
        ({"optimization_level": 9}, "0 to 5"),
        ({"flavour": "abacus"}, "abacus"),
    ],
)
def test_bad_requests_are_one_line(exported, tmp_path, options, message):
    shutil.copytree(exported, tmp_path / "bundle")
    with pytest.raises(InputError, match=message) as caught:
        build(tmp_path / "bundle", **{**QUICK, **options})
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("bundle/engines/*.engine"))


def test_a_bundle_of_another_target_is_refused(tmp_path):
    with pytest.raises(InputError, match="not made for TensorRT.*--target jetson"):
        build(tiny_bundle(tmp_path / "b"))


def test_without_a_gpu_the_exit_code_says_what_is_missing(capsys, bundle):
    """Neither cuda-python nor a driver on a workstation; with a GPU there is nothing to see here."""
    try:
        from linmu.runtimes.tensorrt.cuda import gpu_facts

        gpu_facts()
        pytest.skip("there is a GPU")
    except MissingComponentError:
        assert main(["build", str(bundle)]) == 3
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "linmu build" in error and "fix:" in error
    assert main(["build", str(bundle), "--tensorrt", "tensorrt", "--compute-capability", "8.6"]) == 3
    assert "JetPack" in capsys.readouterr().err


def test_names_of_capabilities():
    assert capability_name("8.6") == "SM86" and capability_name("11.0") == "SM110"


@pytest.mark.slow
def test_a_vision_bundle_is_compiled_whole(tmp_path):
    folder = device_bundle("smolvlm", tmp_path)
    report = build(folder, **{**QUICK, "max_tokens": 160})
    assert [row.graph for row in report.rows] == ["vision", "prefill", "step"]
    index = read_index(folder)
    assert list(index["vision"].parts.data) == ["vision.data"]
    assert list(index["step"].parts.data) == ["weights.data"]
    assert all(row.engine_bytes > 10_000 for row in report.rows)
    # other ranges make another prefill engine; vision and step do not depend on them in a tile family
    manifest = open_bundle(folder).manifest
    changed = replace(index["prefill"].parts, ranges={})
    assert index["prefill"].parts.changes(changed) == ["ranges"]
    assert bundle_ranges(manifest, 200)["vision"] == bundle_ranges(manifest, 160)["vision"]
