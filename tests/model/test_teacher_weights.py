"""Nothing of a teacher is dropped silently: scaled weights, adapters, surplus and stale tensors, quantized folders."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from linmu.cli import main
from linmu.config import MMateConfig
from linmu.conversion.folder import convert_folder
from linmu.errors import InputError
from linmu.formats.model_files import INDEX_NAME, read_model_folder
from linmu.model.folders import load_student, load_teacher
from linmu.step.pack import decoder_form
from tests.folders import teacher_folder
from tests.model.students import SMALL
from tests.tiny import tiny_inputs, tiny_model

MMATE = MMateConfig(**SMALL)
LARGEST = 448.0  # of E4M3


def saved(family: str, folder: Path) -> Path:
    """A tiny teacher's config and weights alone."""
    tiny_model(family)[0].save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors


def to_fp8(tensors: dict[str, torch.Tensor], kind: str, block: tuple[int, int] = (32, 16)) -> dict[str, torch.Tensor]:
    """Replace the decoder's projections by codes and scales; returns the values they stand for, float32."""
    values = {}
    for name in [n for n in tensors if n.endswith("proj.weight") and "layers." in n and "vision" not in n]:
        weight = tensors[name]
        if kind == "block":
            strips = [strip.split(block[1], 1) for strip in weight.split(block[0], 0)]
            scale = torch.stack([torch.stack([part.abs().amax() for part in parts]) for parts in strips]) / LARGEST
            spread = scale.repeat_interleave(block[0], 0)[: weight.shape[0]]
            spread = spread.repeat_interleave(block[1], 1)[:, : weight.shape[1]]
        else:
            scale = (weight.abs().amax() if kind == "matrix" else weight.abs().amax(1, keepdim=True)) / LARGEST
            spread = scale
            tensors[name.removesuffix("weight") + "input_scale"] = torch.tensor(1.5)
        tensors[name] = (weight / spread).to(torch.float8_e4m3fn)
        tensors[name + ("_scale_inv" if kind == "block" else "_scale")] = scale
        values[name] = tensors[name].float() * spread
    return values


def stored_name(parameter: str) -> str:
    """What checkpoints call a parameter of LLaVA."""
    return parameter.replace("model.language_model.", "language_model.model.")


@pytest.mark.parametrize("kind", ["matrix", "row", "block"])
@pytest.mark.parametrize("family", ["llama", "llava"])
def test_fp8_weights_become_the_values_they_stand_for(family, kind, tmp_path):
    folder, values = saved(family, tmp_path / "m"), {}
    edit_weights(folder, lambda tensors: values.update(to_fp8(tensors, kind)))
    if kind == "block":
        edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [32, 16]})
    else:
        edit_config(folder, quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})
    found = read_model_folder(folder)
    assert len(found.scales.weights) == 21 and len(found.scales.runtime) == (0 if kind == "block" else 21)
    for dtype in (torch.float32, torch.bfloat16):
        teacher = load_teacher(found, str(dtype).removeprefix("torch."))
        parameters = {stored_name(name) if family == "llava" else name: p for name, p in teacher.named_parameters()}
        for name, value in values.items():
            assert parameters[name].dtype == dtype and torch.equal(parameters[name], value.to(dtype)), name
        assert not hasattr(teacher.config, "quantization_config")


def test_fine_grained_fp8_is_what_transformers_dequantizes(tmp_path):
    folder = saved("llama", tmp_path / "m")
    edit_weights(folder, lambda tensors: to_fp8(tensors, "block", (16, 8)))  # theirs wants whole blocks
    edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 8]})
    theirs = hf.LlamaForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=hf.FineGrainedFP8Config(dequantize=True, weight_block_size=(16, 8)),
    )
    ours = dict(load_teacher(read_model_folder(folder), "float32").named_parameters())
    for name, value in theirs.named_parameters():
        torch.testing.assert_close(ours[name], value.float(), rtol=2**-8, atol=0)  # theirs are rounded to bfloat16


def test_model_optimizers_own_checkpoint(tmp_path):
    """Written by NVIDIA Model Optimizer itself: every weight within half a step of E4M3, of the right size."""
    quantization = pytest.importorskip("modelopt.torch.quantization")
    export = pytest.importorskip("modelopt.torch.export")
    model, _ = tiny_model("llama")
    model.config.architectures = ["LlamaForCausalLM"]
    quantized = quantization.quantize(
        copy.deepcopy(model), quantization.FP8_DEFAULT_CFG, lambda m: m(torch.arange(5, 40)[None])
    )
    export.export_hf_checkpoint(quantized, export_dir=tmp_path / "m")
    found = read_model_folder(tmp_path / "m")
    assert len(found.scales.weights) == 21 and all(name.endswith(".input_scale") for name in found.scales.runtime)
    ours = dict(load_teacher(found, "float32").named_parameters())
    for name, value in model.named_parameters():
        step = 2**-4 * value.abs() + value.abs().max() / LARGEST * 2**-9
        assert ((ours[name] - value).abs() <= 1.01 * step).all(), name


def test_an_fp8_teacher_converts_and_says_so(tmp_path, capsys):
    folder, values = teacher_folder("llama", tmp_path / "m"), {}
    edit_weights(folder, lambda tensors: values.update(to_fp8(tensors, "matrix")))
    (folder / "hf_quant_config.json").write_text(
        json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}})
    )
    assert main(["convert", str(folder), "-o", str(tmp_path / "student"), "--dtype", "float32"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "21 weights are stored as FP8 codes" in said and "input_scale of the teacher only round" in said
    student = load_student(tmp_path / "student")
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(student.get_parameter(name), values[name]) and student.get_parameter(name).std() < 0.2
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert "quantization_config" not in config
    assert len(json.loads((tmp_path / "student" / "conversion.json").read_text())["notes"]) == 2


METHODS = [
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "awq", "bits": 4},
    {"quant_method": "gptq", "bits": 4},
    {"quant_method": "hqq"},
    {"quant_method": "compressed-tensors"},
    {"quant_method": "torchao"},
    {"quant_method": "mxfp4"},
    {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    {"load_in_8bit": True},
    {"quant_method": "quanto"},
    {"quant_method": "fbgemm_fp8"},
]


@pytest.mark.parametrize("quantization", METHODS, ids=str)
@pytest.mark.parametrize("inside", [False, True])
def test_quantized_teachers_are_refused_with_the_remedy(quantization, inside, tmp_path, capsys):
    folder = saved("llava" if inside else "llama", tmp_path / "m")
    changes = {"quantization_config": quantization}
    edit_config(
        folder,
        **(
            {"text_config": {**json.loads((folder / "config.json").read_text())["text_config"], **changes}}
            if inside
            else changes
        ),
    )
    capsys.readouterr()
    assert main(["convert", str(folder), "-o", str(tmp_path / "student")]) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and "is quantized" in said and "convert the model it was quantized from" in said
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def moved_scale(tensors):
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = torch.tensor(2.0)  # beside a weight that is no code


def lone_scale(tensors):
    to_fp8(tensors, "matrix")
    del tensors["model.layers.1.mlp.up_proj.weight"]


def odd_blocks(tensors):
    to_fp8(tensors, "matrix")
    tensors["model.layers.1.mlp.up_proj.weight_scale"] = torch.ones(3, 5)


def packed(tensors):
    tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(3, 5, dtype=torch.int32)


def extra_layer(tensors):
    tensors["model.layers.3.mlp.up_proj.weight"] = torch.zeros(80, 48)


def bias(tensors):
    tensors["model.layers.2.self_attn.q_proj.bias"] = torch.ones(64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved_scale, "quantized tensor model.layers.0.mlp.up_proj.weight_scale; got beside .* of dtype F32"),
        (lone_scale, "layers.1.mlp.up_proj.weight_scale; got without the weight"),
        (odd_blocks, r"layers.1.mlp.up_proj.weight_scale; got shape \[3, 5\] for a weight of shape \[80, 48\]"),
        (packed, "layers.0.mlp.up_proj.qweight; got of another method"),
        (extra_layer, "weights that its model does not use; got model.layers.3.mlp.up_proj.weight"),
        (bias, "does not use; got model.layers.2.self_attn.q_proj.bias .1 in all"),
        (lambda tensors: tensors.update({"v_head.weight": torch.ones(3)}), "does not use; got v_head.weight"),
    ],
)
def test_what_the_model_does_not_use_is_refused_by_name(change, message, tmp_path):
    folder = saved("llama", tmp_path / "m")
    edit_weights(folder, change)
    with pytest.raises(InputError, match=message) as caught:
        load_teacher(read_model_folder(folder))
    assert "\n" not in str(caught.value)


def test_buffers_that_older_checkpoints_hold_are_no_weights(tmp_path):
    folder = saved("llama", tmp_path / "m")
    edit_weights(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    load_teacher(read_model_folder(folder))


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_head_beside_tied_embeddings_is_kept_when_it_differs(factor, tmp_path):
    """transformers unties them then; so must the student and its step form."""
    folder = teacher_folder("qwen3", tmp_path / "m")
    edit_weights(folder, lambda t: t.update({"lm_head.weight": factor * t["model.embed_tokens.weight"]}))
    convert_folder(folder, tmp_path / "student", mmate=MMATE)
    student = load_student(tmp_path / "student")
    head, table = student.get_output_embeddings().weight, student.get_input_embeddings().weight
    assert torch.equal(head, factor * table) and decoder_form(student).tied == (factor == 1)


# Adapters.


def adapter_folder(family: str, folder: Path, **settings) -> tuple[Path, hf.PreTrainedModel]:
    """A LoRA adapter with noise in both factors, and the teacher with the adapter on."""
    model, _ = tiny_model(family)
    settings = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "o_proj", "down_proj"], **settings}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(5)
    for name, value in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            value.data += 0.2 * torch.randn(value.shape, generator=generator)
    adapted.save_pretrained(folder)
    return folder, adapted.eval()


@pytest.mark.parametrize("family", ["qwen3", "llava", "qwen2_5_vl"])
@pytest.mark.parametrize("settings", [{}, {"use_dora": True, "use_rslora": True}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_is_merged(family, settings, tmp_path):
    if settings.get("modules_to_save") and family != "llava":
        pytest.skip("its head is its embedding table")
    adapter, adapted = adapter_folder(family, tmp_path / "adapter", **settings)
    base = saved(family, tmp_path / "base")
    merged = load_teacher(read_model_folder(base), adapter=adapter)
    model, tokenizer = tiny_model(family)
    inputs = tiny_inputs(family, model, tokenizer, "text")
    with torch.inference_mode():
        wanted, plain, got = (m(**inputs).logits for m in (adapted, model, merged))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - plain).abs().max() > 0.1
    assert type(merged) is type(model) and not hasattr(merged, "peft_config")
    assert merged.state_dict().keys() == model.state_dict().keys()


def test_the_command_merges_an_adapter(tmp_path, capsys):
    base, (adapter, adapted) = teacher_folder("llama", tmp_path / "base"), adapter_folder("llama", tmp_path / "adapter")
    student = tmp_path / "student"
    assert main(["convert", str(base), "-o", str(student), "--adapter", str(adapter)]) == 0
    assert "is merged into the student: distil it with a teacher" in " ".join(capsys.readouterr().err.split())
    wanted = adapted.merge_and_unload().model.layers[1].mlp.down_proj.weight
    assert torch.equal(load_student(student).model.layers[1].mlp.down_proj.weight, wanted)
    assert "adapter is merged" in json.loads((student / "conversion.json").read_text())["notes"][0]


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    base = teacher_folder("llama", tmp_path / "base")
    adapter, _ = adapter_folder("llama", tmp_path / "adapter")

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            convert_folder(base, tmp_path / "student", mmate=MMATE, adapter=adapter)
        assert "\n" not in str(caught.value) and not (tmp_path / "student").exists()

    path = adapter / "adapter_model.safetensors"
    whole = load_file(path)
    save_file({name: value for name, value in whole.items() if "layers.1" not in name}, path)
    refused("is not this model's; got no .*layers.1")
    save_file({**whole, "base_model.model.other.lora_A.weight": torch.ones(3, 5)}, path)
    refused("is not this model's; got .*other.* has no place")
    save_file({name: value[..., :5].contiguous() for name, value in whole.items()}, path)
    refused("is not this model's; got .*size")
    path.unlink()
    refused("has no adapter_model.safetensors")
    edit = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**edit, "peft_type": "IA3"}))
    refused("peft_type; got IA3; expected LORA")
    adapter = tmp_path / "nothing"
    refused("no .*adapter_config.json")


def test_a_folder_that_is_or_holds_an_adapter_is_refused(tmp_path, capsys):
    adapter, _ = adapter_folder("llama", tmp_path / "adapter")
    assert main(["convert", str(adapter), "-o", str(tmp_path / "student")]) == 2
    said = capsys.readouterr().err
    assert "is only an adapter; got adapter_config.json" in said
    assert f"fix: linmu convert BASE_MODEL --adapter {adapter}" in said
    base = saved("llama", tmp_path / "base")
    for file in adapter.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    assert main(["convert", str(base), "-o", str(tmp_path / "student")]) == 2
    assert "has an adapter beside its weights" in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


def test_stale_weights_beside_an_index_are_refused(tmp_path):
    folder = tmp_path / "m"
    tiny_model("llama")[0].save_pretrained(folder, max_shard_size="50KB")
    load_teacher(read_model_folder(folder))
    tiny_model("llama", 1)[0].save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(InputError, match=f"two sets of weights; got model.safetensors and {INDEX_NAME}"):
        read_model_folder(folder)
