"""The forecast by preset: shapes from sizes alone against the packed matrices of real students."""

from __future__ import annotations

from dataclasses import replace

import pytest

from linmu.formats.presets import INT4_32, INT4_ROWS, LAYER_MATRICES
from linmu.quantize.layer import fitting
from linmu.step.form import DecoderForm, is_matrix
from linmu.step.pack import decoder_form
from linmu.tools.decoder_sizes import DecoderSizes
from linmu.tools.inspect import inspect_folder
from linmu.tools.preset_memory import PHONES, Decoder, preset_memory, stored_bytes, stored_presets
from tests.folders import student_folder
from tests.model.students import fresh_student
from tests.tiny import FAMILY_NAMES


def sized(form: DecoderForm) -> Decoder:
    intermediate = len(form.weights["layers.0.down"]())
    sizes = DecoderSizes(form.layers, form.hidden, intermediate, form.heads, form.kv_heads, form.head_dim)
    return Decoder(sizes, form.mmate, form.vocab, form.tied, form.vision)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"decay": "kv_head", "backward": False},
        {"local_swin": False},
        {"text_window": 4, "text_window_projections": "shared"},
    ],
)
def test_matrices_are_those_of_the_step_form(family, settings):
    form = decoder_form(fresh_student(family, **settings)[0])
    decoder = sized(form)
    assert decoder.parameters == sum(thunk().numel() for name, thunk in form.weights.items() if is_matrix(name))
    layer = {name: form.weights[f"layers.1.{name}"]() for name in LAYER_MATRICES if form.has(f"layers.1.{name}")}
    shapes = {name: tuple(value.shape) for name, value in layer.items()} | {"in_proj": (form.hidden, form.channels)}
    assert sorted(decoder.quantizable()) == sorted(shapes.values())
    assert decoder.controls == layer["in_proj"].shape[1] * form.hidden - form.hidden * form.channels


def test_presets_of_a_target_go_from_wide_to_narrow():
    names = [(preset.target, preset.name) for preset in stored_presets()]
    assert [name for target, name in names if target == "onnx"] == ["none", "fp16", "int8", "int4"]
    assert [name for target, name in names if target == "jetson"] == ["fp16", "int8", "fp8", "int4"]
    for phone in PHONES:
        assert [name for target, name in names if target == phone] == ["none", "8da8w", "8da4w"]


def test_groups_shrink_as_the_quantizer_shrinks_them():
    for rows in (16, 48, 96, 128, 130, 896):
        for asked in (INT4_32, INT4_ROWS):
            scheme, _ = fitting(asked, rows)
            wanted = 2 * rows * 7 if scheme is None else scheme.format.stored_bytes(rows, 7)
            assert stored_bytes((rows, 7), asked.format, 2) == wanted


def test_bytes_of_a_known_model():
    sizes = DecoderSizes(layers=2, hidden_size=128, intermediate_size=256, heads=4, kv_heads=2, head_dim=32)
    mmate = replace(decoder_form(fresh_student("llama")[0]).mmate, decay="query_head")
    decoder = Decoder(sizes, mmate, vocab=100, tied=False, vision=True)
    layer = 128 * 256 * 2 + 128 * 128 + 128 * 512 + 256 * 128  # in_proj and swin, out_proj, gate_up, down
    controls, table, tower = 128 * (4 + 4 + 3 * 4), 100 * 128, 5000
    parameters = 2 * (layer + controls) + 2 * table + tower
    assert decoder.parameters == parameters - tower
    found = {(item.target, item.preset): item for item in preset_memory(decoder, parameters)}
    state = sizes.state_bytes(mmate)
    assert found["onnx", "none"].weight_bytes == 4 * parameters
    assert found["onnx", "none"].running_bytes == 4 * parameters + state
    half = found["jetson", "fp16"]
    assert half.weight_bytes == 2 * parameters and found["onnx", "fp16"].build_peak_bytes == 0
    assert half.running_bytes == 2 * 2 * (2 * (layer + controls) + table) + 2 * tower + state
    assert half.build_peak_bytes == 512 * 2**20 + 4 * 2 * (2 * (layer + controls) + table)
    quarter = 2 * (layer // 2 + 2 * layer // 128 + 2 * controls)
    assert found["jetson", "int4"].weight_bytes == quarter + 2 * (2 * table + tower)
    blocks = 2 * (layer // 2 + 2 * layer // 32 + 2 * controls) + table + 2 * table // 32
    assert found["onnx", "int4"].weight_bytes == blocks + 2 * (table + tower)
    phone = layer // 2 + 2 * layer // 32 + 4 * controls
    assert found["ios", "8da4w"].weight_bytes == 2 * phone + 2 * (table + 2 * 100) + 4 * tower
    tied = {(item.target, item.preset): item for item in preset_memory(replace(decoder, tied=True), parameters - table)}
    assert tied["android", "8da4w"].weight_bytes == 2 * phone + 2 * (table + 2 * 100) + 4 * tower


@pytest.mark.parametrize("family", ["qwen2_5_vl", "idefics3", "llama"])
def test_inspect_shows_them_for_a_student(family, tmp_path):
    found = inspect_folder(student_folder(family, tmp_path))
    by_name = {(item.target, item.preset): item for item in found.presets}
    assert by_name["onnx", "none"].weight_bytes == found.weight_bytes == 4 * found.parameters
    assert by_name["jetson", "fp16"].weight_bytes == 2 * found.parameters
    assert len(found.to_json()["presets"]) == len(stored_presets())
