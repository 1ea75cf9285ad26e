"""Bundles of every family: complete, checked, the same every time; a failure leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import linmu
from linmu.cli import main
from linmu.config import MMateConfig
from linmu.errors import InputError
from linmu.export.onnx_bundle import write_bundle
from linmu.export.targets import write_bundle as write_for_target
from linmu.formats.bundle import open_bundle
from linmu.formats.steady_header import steady_header
from linmu.formats.weights_hash import student_weights_hash
from linmu.layout import PromptRules
from linmu.model.folders import load_student
from linmu.processing import Processor
from linmu.runtimes.backends import open_runner
from tests.exports import export_bundle
from tests.folders import run_on_a_small_disk, student_folder, teacher_folder
from tests.model.students import SMALL
from tests.tiny import FAMILY_NAMES, VISION_NAMES, tiny_image

GRAPHS = ("prefill", "step", "token_embedding")


@pytest.fixture(scope="module")
def student_of(tmp_path_factory):
    """A function: family -> student folder that tests only read."""

    @cache
    def make(family: str) -> Path:
        return student_folder(family, tmp_path_factory.mktemp(family))

    return make


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the branches inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


def check_graph(path: Path, plain: bool) -> None:
    """onnx.checker on a graph where it lies; fused graphs hold operators that only ONNX Runtime has shapes for."""
    model = onnx.load(path, load_external_data=False)
    for node in all_nodes(model.graph):
        if node.op_type == "SimplifiedLayerNormalization":  # ONNX Runtime's own, which it files under ONNX's domain
            node.domain = "com.microsoft"
        assert not plain or not node.domain
    copy = path.with_name("checked.onnx")
    copy.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(copy), full_check=plain)
    copy.unlink()


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("plain", [False, True], ids=["fused", "plain"])
def test_every_family(family, plain, student_of, tmp_path):
    student, said = student_of(family), []
    report = write_bundle(student, tmp_path / "bundle", plain_ops=plain, progress=lambda *step: said.append(step))
    bundle = open_bundle(tmp_path / "bundle")
    manifest, vision = bundle.manifest, family in VISION_NAMES
    assert manifest == report.manifest
    assert sorted(manifest.graphs) == sorted(GRAPHS + ("vision",) * vision)
    for spec in manifest.graphs.values():
        check_graph(bundle.path(spec.file), plain)
    with open_runner(bundle) as runner:  # holds every graph's inputs and outputs against the manifest
        ids = np.array([5, 7, 11])
        table = load_student(student).get_input_embeddings().weight
        np.testing.assert_array_equal(runner.embed(ids), table.detach().numpy()[ids])
        assert runner.step(7, 3, 3, runner.new_state()).shape == (manifest.model.vocab_size,)

    files = {"processor.json", "tokenizer/tokenizer.json", "chat_template.jinja", "README.md", "weights.data"}
    files |= {"vision.data"} if vision else set()
    assert files <= set(manifest.files) and manifest.golden and set(manifest.golden) <= set(manifest.files)
    check_facts(manifest, student, vision, plain)
    stages = [step[0] for step in said]
    assert stages[0] == "loading the student" and stages[-1] == "hashing"
    weights = [step[1:] for step in said if step[0] == "writing weights"]
    assert weights[-1][0] == weights[-1][1] == len(weights)
    readme = (tmp_path / "bundle" / "README.md").read_text()
    assert f"of the {manifest.model.family} family" in readme and "linmu verify ." in readme
    assert all(f"`{name}`" in readme for name in ("prefill.onnx", "step.onnx", "weights.data"))
    for path in (tmp_path / "bundle").rglob("*"):
        assert path.is_dir() or not any(str(place).encode() in path.read_bytes() for place in (tmp_path, student))


def check_facts(manifest, student: Path, vision: bool, plain: bool) -> None:
    """The manifest says what the student's own config says."""
    model, config = manifest.model, json.loads((student / "config.json").read_text())
    text = config.get("text_config", config)
    assert (model.name, model.family) == ("teacher", config["model_type"].removeprefix("linmu_"))
    assert (model.layers, model.heads, model.kv_heads) == (3, 4, 2)
    assert (model.hidden_size, model.intermediate_size, model.vocab_size) == (48, 80, text["vocab_size"])
    assert model.mmate == MMateConfig(**SMALL) and model.weights_hash == student_weights_hash(student)
    tensors = load_file(student / "model.safetensors")
    assert model.parameters == sum(value.numel() for value in tensors.values())
    assert model.rope_parameters["rope_theta"] == 10000.0 and model.prompt_rules == PromptRules.from_config(config)
    assert manifest.target == "onnx" and manifest.backends == ("onnxruntime", "torch")
    assert manifest.precision.weights == "fp32" and manifest.precision.ops == ("plain" if plain else "fused")
    assert manifest.generation["eos_token_ids"] == [2] and manifest.generation["max_position_embeddings"] == 4096
    assert len(manifest.state) == 6
    recurrent = model.heads * model.head_dim**2
    conv = 3 * (model.heads + 2 * model.kv_heads) * model.head_dim
    assert manifest.state_bytes == 3 * 4 * (recurrent + conv)
    assert manifest.created_with["linmu"] == linmu.__version__ and "torch" in manifest.created_with
    assert bool(manifest.vision) == vision
    if vision:
        assert {"patch", "merge", "mean", "std", "resize", "image_size", "tokens_per_image"} <= set(manifest.vision)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "llama"])
def test_the_same_student_gives_the_same_bytes(family, student_of, tmp_path):
    first, second = (export_bundle(student_of(family), tmp_path / name) for name in "ab")
    assert first == second
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


@pytest.mark.parametrize("family", ["llava", "qwen3"])
def test_half_precision(family, student_of, tmp_path):
    whole = export_bundle(student_of(family), tmp_path / "whole", preset="none")
    half = export_bundle(student_of(family), tmp_path / "half", preset="fp16")
    assert (whole.precision.weights, half.precision.weights) == ("fp32", "fp16")
    assert whole.model.weights_hash == half.model.weights_hash
    bundles = [open_bundle(tmp_path / name) for name in ("whole", "half")]
    assert bundles[0].model_hash != bundles[1].model_hash
    assert half.files["weights.data"].bytes < 0.8 * whole.files["weights.data"].bytes
    logits = []
    for bundle in bundles:
        with open_runner(bundle) as runner:
            state = runner.new_state()
            steps = [runner.step(token, place, place, state).copy() for place, token in enumerate((7, 9, 4))]
            logits.append(np.stack(steps))
    difference = np.abs(logits[0] - logits[1]).max() / logits[0].std()
    assert 1e-6 < difference < 0.05


def test_the_hash_names_the_tensors_not_the_files(student_of, tmp_path):
    student = student_of("llama")
    wanted = student_weights_hash(student)
    load_student(student).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert student_weights_hash(tmp_path / "shards") == wanted
    tensors = load_file(student / "model.safetensors")
    name = "model.layers.1.self_attn.scan_forward.dt_bias"
    bias = tensors[name]
    for change in ({name: bias + 1e-3}, {name + "_": bias.clone()}, {name: bias.reshape(2, 2)}):
        (tmp_path / "other").mkdir(exist_ok=True)
        save_file({**tensors, **change}, tmp_path / "other" / "model.safetensors")
        assert student_weights_hash(tmp_path / "other") != wanted


def test_a_steady_header_keeps_the_tensors(tmp_path):
    tensors = {"b": torch.arange(6.0), "a": torch.arange(3)}
    metadata = {f"key{i}": f'"é{i}' for i in range(9)}
    found = set()
    for turn in range(3):
        path = tmp_path / f"{turn}.safetensors"
        save_file(tensors, path, metadata)
        steady_header(path)
        found.add(path.read_bytes())
        with safe_open(path, "pt") as file:
            assert file.metadata() == metadata
            assert all(torch.equal(file.get_tensor(name), value) for name, value in tensors.items())
    assert len(found) == 1


def damaged(student: Path, root: Path, damage: str) -> Path:
    """A copy of a student with one thing wrong."""
    if damage == "missing":
        return root / "nothing"
    if damage == "a teacher":
        return teacher_folder("llama", root / "teacher")
    copy = root / "copy"
    copy.mkdir()
    for path in student.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    weights = copy / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-64])
    elif damage == "lacking":
        tensors = load_file(weights)
        tensors.pop("model.layers.2.self_attn.scan_forward.a_log")
        save_file(tensors, weights, {"format": "pt"})
    elif damage == "no tokenizer":
        (copy / "tokenizer.json").unlink()
    elif damage == "unknown setting":
        config = json.loads((copy / "config.json").read_text())
        config["linmu"]["surprise"] = 1
        (copy / "config.json").write_text(json.dumps(config))
    elif damage == "another rule":
        config = json.loads((copy / "config.json").read_text())
        config["linmu"]["rule"] = "gated_delta"
        (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "no .*config.json"),
        ("a teacher", "is not a student.*linmu convert"),
        ("truncated", "truncated"),
        ("lacking", "lacks weights.*model.layers.2.self_attn.scan_forward.a_log"),
        ("no tokenizer", "tokenizer file is missing"),
        ("unknown setting", "unknown M-MATE setting; got surprise"),
        ("another rule", "cannot be calibrated or exported yet; got rule gated_delta; expected rule gated; fix"),
    ],
)
def test_a_bad_student_leaves_nothing(damage, message, student_of, tmp_path):
    student = damaged(student_of("llama"), tmp_path, damage)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=message) as caught:
        export_bundle(student, tmp_path / "made" / "bundle")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "android", "preset": "int8"}, "preset of target 'android'; got 'int8'; expected one of none"),
        ({"target": "onnx", "compile_check": False}, "option compile_check of target onnx"),
        ({"target": "windows"}, "expected one of onnx, jetson, android, ios"),
        ({"preset": "int4"}, "--quant int4 needs a calibration record"),
        ({"preset": "int2"}, "preset of target 'onnx'; got 'int2'; expected one of none, fp16, auto, int8, int4"),
    ],
)
def test_what_does_not_exist_yet_is_named(options, message, student_of, tmp_path, capsys):
    with pytest.raises(InputError, match=message):
        write_for_target(student_of("llama"), tmp_path / "bundle", **options)
    names = {"target": "--target", "preset": "--quant", "compile_check": "--no-compile-check"}
    arguments = [text for name, value in options.items() for text in (names[name], value) if text]
    capsys.readouterr()  # making the student shows progress
    assert main(["export", str(student_of("llama")), "-o", str(tmp_path / "bundle"), *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_an_existing_bundle_is_kept_unless_told(student_of, tmp_path):
    out = tmp_path / "bundle"
    first = export_bundle(student_of("qwen2"), out)
    with pytest.raises(InputError, match="exists already"):
        export_bundle(student_of("llama"), out)
    assert open_bundle(out).manifest == first
    export_bundle(student_of("llama"), out, overwrite=True)
    assert open_bundle(out).manifest.model.family == "llama" and [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_full_disk_leaves_nothing(student_of, tmp_path):
    done = run_on_a_small_disk(50_000, "export", str(student_of("llama")), "-o", str(tmp_path / "bundle"))
    assert done.returncode == 2 and "error: the limit of file sizes was reached while writing" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_command_prints_sizes_and_json(student_of, tmp_path, capsys):
    out = tmp_path / "bundle"
    assert main(["export", str(student_of("llama")), "-o", str(out), "--plain-ops", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["bundle"] == str(out) and document["precision"]["ops"] == "plain"
    assert document["graphs"]["step"]["nodes_per_layer"] > 20 and document["state_bytes"] > 0
    assert document["bundle_bytes"] == sum(entry.bytes for entry in open_bundle(out).manifest.files.values())
    for part in ("nodes in a layer", "peak memory", "state"):
        assert part in captured.err


def test_a_bundle_answers(student_of, tmp_path):
    export_bundle(student_of("llava"), tmp_path / "bundle")
    inputs = Processor.from_folder(tmp_path / "bundle").encode("What?", [tiny_image()])
    session = linmu.load(tmp_path / "bundle")
    logits = session.prefill(inputs)
    student = load_student(student_of("llava"))
    with torch.inference_mode():
        ids, pixels = torch.from_numpy(inputs.input_ids)[None], torch.from_numpy(inputs.vision_calls[0]["pixel_values"])
        wanted = student(input_ids=ids, pixel_values=pixels).logits[0, -1].numpy()
    assert np.abs(logits - wanted).max() < 1e-4 * wanted.std()
