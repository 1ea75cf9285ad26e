"""What surrounds the engines, on a real bundle and without a GPU: choosing the backend, finding engines, feeds."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from linmu.cli import main
from linmu.errors import BundleError, DeviceError, InputError, MissingComponentError
from linmu.formats.bundle import open_bundle
from linmu.runtimes import backends
from linmu.runtimes.backends import BACKENDS, available_backends, open_runner
from linmu.runtimes.session import load
from linmu.runtimes.shape_ranges import bundle_ranges
from linmu.runtimes.tensorrt.engine import is_state, without_states
from linmu.runtimes.tensorrt.engine_files import (
    Engine,
    data_bytes,
    engine_name,
    engine_parts,
    weight_bytes,
    write_index,
)
from linmu.runtimes.tensorrt.fit import check_ranges
from linmu.runtimes.tensorrt.plan import bind_dimensions, plan_arena
from linmu.runtimes.tensorrt.runner import find_engines, longest_prefill, prefill_feeds
from linmu.runtimes.tensorrt.toolkit import Toolkit
from tests.paths import ROOT
from tests.runtimes.sessions import gap
from tests.runtimes.tensorrt.support import device_bundle
from tests.tiny import tiny_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return device_bundle("smolvlm", tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture
def no_gpu():
    from linmu.runtimes.tensorrt.cuda import gpu_facts

    try:
        gpu_facts()
    except MissingComponentError:
        return
    pytest.skip("there is a GPU")


def test_auto_falls_back_with_one_plain_line(folder, no_gpu):
    bundle, said = open_bundle(folder), []
    assert "tensorrt" in bundle.manifest.backends and available_backends(bundle) == ["onnxruntime", "torch"]
    with open_runner(bundle, threads=1, say=said.append) as runner:
        assert runner.backend == "onnxruntime"
    assert len(said) == 1 and said[0].startswith("backend tensorrt cannot be used (") and "\n" not in said[0]
    assert said[0].endswith("running on onnxruntime")


def test_asking_for_tensorrt_does_not_fall_back(capsys, folder, no_gpu):
    for command in (["run", str(folder), "-p", "hello"], ["bench", str(folder)], ["verify", str(folder)]):
        assert main([*command, "--backend", "tensorrt"]) == 3
        captured = capsys.readouterr()
        error = captured.err.strip().splitlines()[-1]
        assert captured.out == "" and error.startswith("error: ") and "tensorrt" in error and "fix:" in error


def test_verify_checks_what_is_here_and_tells_what_is_not(capsys, folder, no_gpu):
    assert main(["verify", str(folder), "--steps", "4", "--json"]) == 0
    captured = capsys.readouterr()
    assert "tensorrt: not checked here (" in captured.err
    assert json.loads(captured.out)["backends"] == ["onnxruntime", "torch"]


def test_either_tensorrt_is_enough(monkeypatch):
    entry = BACKENDS["tensorrt"]
    for here in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setattr(backends, "installed", lambda name, here=here: name in (here, "cuda.bindings"))
        assert entry.missing == []
    monkeypatch.setattr(backends, "installed", lambda name: name == "cuda.bindings")
    assert entry.missing == ["tensorrt or tensorrt_rtx"]


TOOLKIT = Toolkit(None, "tensorrt", "10.3.0", None)  # only its name and version are asked for
ORIN = ("Orin", "8.7")


def put_engines(folder, bundle, gpu=ORIN, tokens=300) -> dict[str, Engine]:
    engines = {}
    (folder / "engines").mkdir(exist_ok=True)
    for graph, ranges in bundle_ranges(bundle.manifest, tokens).items():
        parts = engine_parts(bundle, graph, ranges, flavour="tensorrt", version="10.3.0", gpu=gpu[0], capability=gpu[1])
        name = engine_name(graph, parts)
        (folder / "engines" / name).write_bytes(b"plan")
        engines[graph] = Engine(graph, name, 4, parts)
    write_index(folder, engines.values())
    return engines


def test_engines_are_found_by_what_they_were_built_for(folder):
    bundle = open_bundle(folder)
    with pytest.raises(MissingComponentError, match=r"vision engine \(it was never built\).*fix: linmu build"):
        find_engines(bundle, TOOLKIT, *ORIN)
    engines = put_engines(folder, bundle)
    assert find_engines(bundle, TOOLKIT, *ORIN) == engines
    with pytest.raises(MissingComponentError, match="another gpu and another capability"):
        find_engines(bundle, TOOLKIT, "Thor", "11.0")
    with pytest.raises(MissingComponentError, match="another version"):
        find_engines(bundle, replace(TOOLKIT, version="10.4.0"), *ORIN)
    (folder / "engines" / engines["step"].file).unlink()
    with pytest.raises(MissingComponentError, match=r"step engine \(it is missing\)"):
        find_engines(bundle, TOOLKIT, *ORIN)
    (folder / "engines" / "engines.json").write_text("[]")
    with pytest.raises(BundleError, match="engines.json cannot be read"):
        find_engines(bundle, TOOLKIT, *ORIN)


def test_weights_are_what_the_manifest_says(folder):
    bundle = open_bundle(folder)
    files, graphs = bundle.manifest.files, bundle.manifest.graphs
    assert set(bundle.manifest.graph_weights) == set(graphs)
    assert data_bytes(bundle, "vision").keys() == {"vision.data"}
    for graph in ("prefill", "step"):
        assert data_bytes(bundle, graph).keys() == {"weights.data"}
        assert weight_bytes(bundle, graph) <= files[graphs[graph].file].bytes + files["weights.data"].bytes
    (nbytes,) = data_bytes(bundle, "step").values()
    assert 0.5 * files["weights.data"].bytes < nbytes  # all but the table of embeddings
    silent = replace(bundle, manifest=replace(bundle.manifest, graph_weights={}))
    with pytest.raises(BundleError, match="graph_weights has no vision.*export the bundle again"):
        data_bytes(silent, "vision")


def test_golden_pieces_and_buffers_fit_the_default_ranges(folder):
    bundle = open_bundle(folder)
    for graph, ranges in bundle_ranges(bundle.manifest).items():
        spec = without_states(bundle.manifest.graphs[graph])
        assert not any(is_state(item.name) for item in (*spec.inputs, *spec.outputs))
        arena = plan_arena((*spec.inputs, *spec.outputs), ranges)
        assert set(arena.places) == {item.name for item in (*spec.inputs, *spec.outputs)}
        smallest = {i.name: tuple(ranges[d].min if isinstance(d, str) else d for d in i.shape) for i in spec.inputs}
        dims = bind_dimensions(spec, smallest)
        assert all(ranges[name].holds(size) for name, size in dims.items())


def test_a_long_prompt_runs_in_pieces_that_the_engine_takes(folder, monkeypatch):
    """The pieces of a session whose runner has the limit of engines built with `--max-tokens 200`."""
    bundle = open_bundle(folder)
    engines = put_engines(folder, bundle, tokens=200)
    assert longest_prefill(engines) == 200 and longest_prefill({}) is None
    spec, ranges = without_states(bundle.manifest.graphs["prefill"]), engines["prefill"].ranges
    with load(folder, "onnxruntime", threads=1) as session:
        inputs = session.prepare("a b c " * 300, [tiny_image(1), tiny_image(2)])
        whole = session.prefill(inputs).copy()
        prefill, sizes = session.runner.prefill, []

        def checked(piece, state):
            feeds = prefill_feeds(piece, SimpleNamespace(spec=spec))
            dimensions = bind_dimensions(spec, {name: array.shape for name, array in feeds.items()})
            check_ranges("prefill", dimensions, ranges)
            sizes.append(dimensions["tokens"])
            return prefill(piece, state)

        monkeypatch.setattr(session.runner, "prefill", checked)
        session.reset()
        with pytest.raises(InputError, match=r"this prompt needs tokens = \d+ in the prefill engine"):
            session.prefill(inputs)
        monkeypatch.setattr(session.runner, "max_piece_tokens", longest_prefill(engines))
        for wanted, longest in ((None, 200), (10**6, 200), (64, 64)):
            sizes.clear()
            session.reset()
            assert gap(session.prefill(inputs, wanted), whole) < 1e-3
            assert max(sizes) <= longest and sum(sizes) == len(inputs.input_ids)


def test_importing_the_runner_loads_neither_tensorrt_nor_cuda():
    script = (
        "import sys, linmu.runtimes.tensorrt.runner, linmu.tools.build\n"
        "print(sorted({'tensorrt', 'tensorrt_rtx', 'cuda', 'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_broken_call_of_cuda_is_told_by_name(no_gpu):
    """The real runtime library, where it is installed: every call fails without a driver, and says so."""
    pytest.importorskip("cuda.bindings.runtime", reason="pip install 'linmu[jetson]'")
    from linmu.runtimes.tensorrt.cuda import Cuda

    with pytest.raises(DeviceError, match=r"cudaSetDevice failed; got cudaError\w+ \(.+\)"):
        Cuda()
