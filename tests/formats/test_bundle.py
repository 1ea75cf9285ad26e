from __future__ import annotations

import json
import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linmu.errors import BundleError
from linmu.formats.bundle import check_graph_io, open_bundle, path_problem, write_manifest
from linmu.specs import TensorSpec
from tests.bundles import step_graph, tiny_bundle, tiny_manifest


def edit_manifest(folder: Path, change) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_written_bundle_opens(tmp_path):
    bundle = open_bundle(tiny_bundle(tmp_path / "b"))
    entry = bundle.manifest.files["weights.data"]
    assert (entry.bytes, entry.sha256) == (200, sha256(bytes(range(200))).hexdigest())
    assert set(bundle.manifest.files) == {"step.onnx", "weights.data", "golden/step.safetensors"}
    assert bundle.path("step.onnx").read_bytes() == b"graph"
    with pytest.raises(BundleError, match="other.onnx"):
        bundle.path("other.onnx")


def test_engines_are_neither_hashed_nor_surplus(tmp_path):
    folder = tiny_bundle(tmp_path / "b")
    (folder / "engines").mkdir()
    (folder / "engines" / "step.engine").touch()
    open_bundle(folder)
    assert "engines/step.engine" not in write_manifest(folder, tiny_manifest()).files


def test_one_flipped_bit_is_found(tmp_path):
    folder = tiny_bundle(tmp_path / "b")
    data = bytearray((folder / "weights.data").read_bytes())
    data[100] ^= 1
    (folder / "weights.data").write_bytes(data)
    with pytest.raises(BundleError, match="weights.data was changed"):
        open_bundle(folder)
    open_bundle(folder, verify_hashes=False)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / "weights.data").write_bytes(b"short"), "weights.data; got 5 bytes"),
        (lambda b: (b / "step.onnx").unlink(), "step.onnx is missing"),
        (lambda b: (b / "extra.onnx").touch(), "extra.onnx: the manifest does not list"),
        (lambda b: (b / "manifest.json").unlink(), "no .*manifest.json"),
        (lambda b: (b / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda b: (b / "manifest.json").write_text("[" * 100_000), "not valid JSON"),
        (lambda b: (b / "manifest.json").write_text('{"a": 1, "a": 2}'), "twice"),
        (lambda b: (b / "manifest.json").write_bytes(b"\xff"), "not valid JSON"),
        (lambda b: edit_manifest(b, lambda d: d["golden"].update({"golden/none": ""})), "golden/none is named"),
        (lambda b: edit_manifest(b, lambda d: d["graphs"]["step"].update(file="x.onnx")), "x.onnx is named"),
        (lambda b: edit_manifest(b, lambda d: d["files"].update({"../x": d["files"]["step.onnx"]})), r"'\.\.' part"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, damage, message):
    folder = tiny_bundle(tmp_path / "b")
    damage(folder)
    for verify_hashes in (True, False):
        with pytest.raises(BundleError, match=message) as caught:
            open_bundle(folder, verify_hashes=verify_hashes)
        assert "\n" not in str(caught.value)


def test_links_may_not_leave_the_bundle(tmp_path):
    folder = tiny_bundle(tmp_path / "b")
    (tmp_path / "secret").write_bytes((folder / "step.onnx").read_bytes())
    (folder / "step.onnx").unlink()
    (folder / "step.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="step.onnx is a link that leaves"):
        open_bundle(folder)
    with pytest.raises(BundleError, match="step.onnx is a link that leaves"):
        write_manifest(folder, tiny_manifest())


def test_links_to_folders_are_refused(tmp_path):
    folder = tiny_bundle(tmp_path / "b")
    (tmp_path / "outside").mkdir()
    (folder / "engines").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="engines is a link"):
        open_bundle(folder)


def test_no_bundle_at_all(tmp_path):
    with pytest.raises(BundleError, match="no bundle at"):
        open_bundle(tmp_path / "none")


@given(st.text(alphabet="ab./\\~: \n", max_size=12))
def test_accepted_paths_stay_inside_on_every_system(name):
    if path_problem(name) is not None:
        return
    assert not PurePosixPath(name).is_absolute() and not PureWindowsPath(name).is_absolute()
    assert not PureWindowsPath(name).drive and ".." not in PureWindowsPath(name).parts
    assert os.path.normpath("/root/" + name) == "/root/" + name


@given(st.lists(st.text(alphabet="abc_-0", min_size=1, max_size=5), min_size=1, max_size=4))
def test_ordinary_paths_are_accepted(parts):
    assert path_problem("/".join([*parts, "file.data"])) is None


@pytest.mark.parametrize("name", ["", "/a", "~/a", "C:/a", "C:a", "a\\b", "a//b", "./a", "a/..", "a/", "engines/x"])
def test_bad_paths(name):
    assert path_problem(name) is not None


def specs(**changes):
    graph = step_graph()
    inputs = [replace(item, **changes.get(item.name, {})) for item in graph.inputs]
    outputs = [replace(item, **changes.get(item.name, {})) for item in graph.outputs]
    return graph, inputs, outputs


def test_graph_that_agrees():
    check_graph_io(*specs(input_ids={"shape": ("N", 1)}, logits={"shape": ("N", "", 11)}))
    check_graph_io(*specs(logits={"shape": (2, 1, 11)}))


@pytest.mark.parametrize(
    "changes",
    [
        {"input_ids": {"dtype": "int32"}},
        {"input_ids": {"shape": ("batch",)}},
        {"input_ids": {"shape": ("batch", 2)}},
        {"input_ids": {"shape": (1, 1)}},
        {"past.0.conv": {"shape": ("batch", 50, 3)}},
        {"logits": {"shape": ("batch", 1, 12)}},
    ],
)
def test_graph_that_differs(changes):
    with pytest.raises(BundleError, match="step.onnx: (in|out)put '" + next(iter(changes))):
        check_graph_io(*specs(**changes))


def test_graph_with_missing_or_surplus_tensors():
    graph, inputs, outputs = specs()
    with pytest.raises(BundleError, match="input 'past.0.recurrent' is missing"):
        check_graph_io(graph, inputs[:-1], outputs)
    with pytest.raises(BundleError, match="output 'more' is not in the manifest"):
        check_graph_io(graph, inputs, [*outputs, TensorSpec("more", "float32", ())])
