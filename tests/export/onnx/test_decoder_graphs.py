"""The decoder's graphs in ONNX Runtime on random states: fused, plain and the eager step form agree; sizes hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import transformers

from linmu.config import MMateConfig
from linmu.conversion.convert import convert
from linmu.export.onnx.decoder_graphs import FUSED, PLAIN, write_decoder_graphs
from linmu.export.onnx.weight_file import alignment_of, write_weights
from linmu.layout import layout_tensors, media_of_batch, prompt_layout
from linmu.step import decoder
from linmu.step.form import DecoderForm
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps
from tests.model.students import prompt_of, shared_student
from tests.tiny import FAMILY_NAMES

SETTINGS = [
    {},
    {"decay": "kv_head", "skip": True},
    {"causal_windows": True, "taps": 3},
    {"text_window": 5},
    {"text_window": 4, "text_sinks": 1, "text_window_projections": "shared"},
    {"backward": False},
    {"local_swin": False},
]
CASES = [(family, {}) for family in FAMILY_NAMES]
CASES += [(family, settings) for family in ("qwen3_vl", "llama") for settings in SETTINGS[1:]]


@dataclass(frozen=True)
class Case:
    """One student's form and the inputs of one prefill and one step, by graph input name."""

    form: DecoderForm
    past: dict[str, np.ndarray]
    prefill: dict[str, np.ndarray]
    step: dict[str, np.ndarray]


def make_case(family: str, settings: dict) -> Case:
    vision = not shared_student(family, **settings)[0].linmu_family.text_only
    student, _, inputs = prompt_of(family, "two_images" if vision else "text", **settings)
    form, random = decoder_form(student), np.random.default_rng(3)
    ids = inputs["input_ids"][0].numpy()
    positions, following, extra = np.arange(len(ids))[None], len(ids), {}
    if vision:
        rules = student._prompt_rules
        grids = [inputs[name].numpy() if name in inputs else None for name in ("image_grid_thw", "video_grid_thw")]
        layout = prompt_layout(rules, ids, media_of_batch(rules, ids[None], *grids)[0], student.mmate.max_span_frames)
        positions, following = layout.position_ids, layout.next_position
        extra = layout_tensors(layout, student.mmate, never_empty=True)
    if form.rope_axes == 3:
        positions = np.array(np.broadcast_to(positions, (3, len(ids))))[:, None]
    if form.deepstack:
        extra["deepstack"] = random.standard_normal((form.deepstack, 1, len(ids), form.hidden)).astype(np.float32)
    past = {s.name: 0.3 * random.standard_normal(s.shape).astype(np.float32) for s in form.state_specs()}
    embeds = random.standard_normal((1, len(ids), form.hidden)).astype(np.float32)
    shape = (3, 1, 1) if form.rope_axes == 3 else (1, 1)
    fill = {"past_length": np.array([2], np.int64)} if form.mmate.text_window else {}
    return Case(
        form,
        past,
        {"inputs_embeds": embeds, "position_ids": np.ascontiguousarray(positions), **extra, **fill, **past},
        {"input_ids": np.array([[7]]), "position_ids": np.full(shape, following), **fill, **past},
    )


@torch.no_grad()
def eager(case: Case) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Outputs of prefill and step by the step form in torch."""
    ops, past = TorchOps(case.form), {name: torch.from_numpy(value) for name, value in case.past.items()}
    p = {name: torch.from_numpy(value) for name, value in case.prefill.items()}
    layout = {name.removeprefix("layout."): value for name, value in p.items() if name.startswith("layout.")} or None
    fill = p.get("past_length")
    first = decoder.prefill(
        ops, case.form, p["inputs_embeds"], p["position_ids"], past, layout, p.get("deepstack"), fill
    )
    ids, positions = (torch.from_numpy(case.step[name]) for name in ("input_ids", "position_ids"))
    second = decoder.step(ops, case.form, ids, positions, past, fill)
    return tuple({"logits": a.numpy(), **{k: v.numpy() for k, v in b.items()}} for a, b in (first, second))


def run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert {item.name for item in session.get_inputs()} == set(feeds)
    return dict(zip((item.name for item in session.get_outputs()), session.run(None, feeds), strict=True))


def assert_agree(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].shape == value.shape and np.isfinite(got[name]).all(), name
        scale = value.std() if name == "logits" else np.abs(value).max()
        assert np.abs(got[name] - value).max() <= 5e-5 * scale, name


def write(folder: Path, form: DecoderForm, plain: bool = False, half: bool = False):
    folder.mkdir()
    stored = write_weights(folder / "weights.data", form.weights, half)
    specs, reports = write_decoder_graphs(folder, form, stored, "weights.data", PLAIN if plain else FUSED)
    return stored, specs, reports


@pytest.mark.parametrize(("family", "settings"), CASES, ids=str)
def test_fused_plain_and_eager_agree(family, settings, tmp_path):
    case = make_case(family, settings)
    wanted = dict(zip(("prefill", "step"), eager(case), strict=True))
    found = {}
    for plain in (False, True):
        folder = tmp_path / str(plain)
        _, specs, _ = write(folder, case.form, plain)
        for name in wanted:
            found[plain, name] = run(folder / f"{name}.onnx", getattr(case, name))
            assert list(found[plain, name]) == [spec.name for spec in specs[name].outputs]
            assert_agree(found[plain, name], wanted[name])
    for name in wanted:
        assert_agree(found[True, name], found[False, name])
    past = {spec.name: f"present{spec.name.removeprefix('past')}" for spec in case.form.state_specs()}
    for before, after in past.items():  # a graph that hands its state through would agree with nobody else
        assert not np.array_equal(found[False, "step"][after], case.past[before])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llama"])
def test_a_batch_of_sequences_steps_like_each_alone(family, tmp_path):
    case, random = make_case(family, {}), np.random.default_rng(5)
    write(tmp_path / "graphs", case.form)
    past = {
        name: np.concatenate([value, random.standard_normal(value.shape).astype(np.float32)])
        for name, value in case.past.items()
    }
    axis = 1 if case.form.rope_axes == 3 else 0
    positions = np.concatenate([case.step["position_ids"], case.step["position_ids"] + 4], axis)
    ids = np.array([[7], [11]])
    both = run(tmp_path / "graphs" / "step.onnx", {"input_ids": ids, "position_ids": positions, **past})
    for row in (0, 1):
        alone = {"input_ids": ids[row : row + 1], "position_ids": positions.take([row], axis)}
        got = run(tmp_path / "graphs" / "step.onnx", alone | {name: x[row : row + 1] for name, x in past.items()})
        assert_agree({name: value[row : row + 1] for name, value in both.items()}, got)


def initializers(path: Path) -> dict[str, dict[str, str]]:
    """External tensors of a graph: name -> location, offset, length."""
    model = onnx.load(path, load_external_data=False)
    return {
        tensor.name: {item.key: item.value for item in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm", "internvl", "llama"])
def test_weights_lie_once_in_one_file(family, tmp_path):
    form = decoder_form(shared_student(family)[0])
    stored, _, _ = write(tmp_path / "graphs", form)
    graphs = {
        name: initializers(tmp_path / "graphs" / f"{name}.onnx") for name in ("token_embedding", "prefill", "step")
    }
    for name, tensors in graphs.items():
        for weight, place in tensors.items():
            entry = stored[weight]
            wanted = {"location": "weights.data", "offset": str(entry.offset), "length": str(entry.length)}
            assert place == wanted, (name, weight)
    # frequencies are the eager step form's; graphs hold the turns that they make (linmu.step.exact_angles)
    assert set().union(*graphs.values()) == set(stored) - {"rope"}
    assert set(graphs["step"]) <= set(stored) and "token_embedding" in graphs["step"]
    places = sorted((entry.offset, entry.offset + entry.length) for entry in stored.values())
    assert all(end <= start for (_, end), (start, _) in zip(places, places[1:], strict=False))
    assert all(start % alignment_of(end - start) == 0 for start, end in places)
    assert ("head" in stored) != form.tied
    if form.tied:  # the head reads the embedding's own table
        assert "token_embedding" in graphs["prefill"] and (family in ("qwen3_vl", "smolvlm"))
    for path in (tmp_path / "graphs").glob("*.onnx"):
        assert path.stat().st_size < 400_000


@pytest.mark.parametrize("tied", [False, True])
def test_the_data_file_is_as_large_as_the_student(tied, tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=1500,
        hidden_size=320,
        intermediate_size=700,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=48,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    student = convert(transformers.LlamaForCausalLM(config).eval(), MMateConfig())
    form = decoder_form(student)
    stored, _, _ = write(tmp_path / "whole", form)
    parameters = sum(value.numel() for value in student.parameters())
    size = (tmp_path / "whole" / "weights.data").stat().st_size
    assert sum(weight.length for weight in stored.values()) <= size <= 1.05 * 4 * parameters
    assert sum(weight.length for weight in stored.values()) >= 0.99 * 4 * parameters
    write(tmp_path / "half", form, half=True)
    assert (tmp_path / "half" / "weights.data").stat().st_size <= 0.55 * size


# Nodes of one layer of the fused step graph: biases, q and k norms and DeepStack are what families add.
NODES = {
    "llama": 20,
    "smolvlm": 20,
    "llava": 20,
    "qwen2": 21,
    "qwen2_5_vl": 21,
    "internvl": 21,
    "qwen3": 23,
    "qwen3_vl": 23,
}


@pytest.mark.parametrize("family", NODES)
def test_nodes_of_a_layer(family, tmp_path):
    form = decoder_form(shared_student(family)[0])
    _, _, reports = write(tmp_path / "graphs", form)
    model = onnx.load(tmp_path / "graphs" / "step.onnx", load_external_data=False)
    own = [node for node in model.graph.node if node.name.startswith("layers.1.")]
    assert len(own) <= NODES[family] and reports["step"].nodes == len(model.graph.node)
    assert 10 < reports["step"].nodes_per_layer <= NODES[family]
