"""Saving and loading students: every family, nothing lost; what is no student is refused in one line."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import linmu
from linmu.errors import InputError
from linmu.model.modeling import LinMUForCausalLM, LinMUForConditionalGeneration
from tests.model.students import SMALL, fresh_student
from tests.tiny import FAMILY_NAMES, VISION_NAMES, tiny_inputs, tiny_model


def logits(model, inputs) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs).logits


def loader(family: str):
    return LinMUForConditionalGeneration if family in VISION_NAMES else LinMUForCausalLM


@pytest.mark.parametrize(
    ("family", "rule"),
    [*((name, "gated") for name in FAMILY_NAMES), ("qwen3_vl", "gated_delta"), ("llama", "gated_delta")],
)
def test_a_saved_student_comes_back_whole(family, rule, tmp_path):
    student, tokenizer = fresh_student(family, skip=True, rule=rule)
    student.save_pretrained(tmp_path)
    loaded, info = loader(family).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    before, after = student.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    tied = student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert tied == (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight)
    assert tied == bool(student.config.tie_word_embeddings)
    assert loaded.config.linmu == student.config.linmu and loaded.mmate == student.mmate
    assert isinstance(loaded, getattr(transformers, student.linmu_family.model_class))
    assert not loaded.training and type(loaded) is type(student)
    for kind in ["text", "image"] if family in VISION_NAMES else ["text"]:
        inputs = tiny_inputs(family, student, tokenizer, kind)
        assert torch.equal(logits(loaded, inputs), logits(student, inputs))


def test_settings_and_a_second_round_survive(tmp_path):
    settings = {"decay": "kv_head", "taps": 3, "text_window": 5, "backward": False, "scan": "raster", "rope": False}
    student, tokenizer = fresh_student("qwen3_vl", **settings)
    student.save_pretrained(tmp_path / "one")
    once = LinMUForConditionalGeneration.from_pretrained(tmp_path / "one")
    once.save_pretrained(tmp_path / "two")
    twice = LinMUForConditionalGeneration.from_pretrained(tmp_path / "two")
    assert twice.config.linmu == {**student.mmate.to_json(), **SMALL, **settings}
    inputs = tiny_inputs("qwen3_vl", student, tokenizer, "video")
    assert torch.equal(logits(twice, inputs), logits(student, inputs))


def test_a_student_from_before_there_were_rules_is_a_gated_one(tmp_path):
    student, tokenizer = fresh_student("llama")
    student.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["linmu"]["rule"]
    path.write_text(json.dumps(config))
    loaded = LinMUForCausalLM.from_pretrained(tmp_path)
    assert loaded.mmate == student.mmate and loaded.mmate.rule == "gated"
    inputs = tiny_inputs("llama", student, tokenizer, "text")
    assert torch.equal(logits(loaded, inputs), logits(student, inputs))


def test_the_file_holds_every_tensor_once_and_names_no_code(tmp_path):
    student, _ = fresh_student("qwen2_5_vl")
    student.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.py"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "linmu_qwen2_5_vl" and "auto_map" not in config
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert sum(file.get_tensor(name).numel() for name in names) == sum(p.numel() for p in student.parameters())
    assert len([name for name in names if ".self_attn." in name and name.endswith("a_log")]) == 6


def test_shards(tmp_path):
    student, tokenizer = fresh_student("llama")
    student.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    inputs = tiny_inputs("llama", student, tokenizer, "text")
    assert torch.equal(logits(LinMUForCausalLM.from_pretrained(tmp_path), inputs), logits(student, inputs))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "smolvlm", "qwen2"])
def test_bf16(family, tmp_path):
    student, tokenizer = fresh_student(family)
    inputs = tiny_inputs(family, student, tokenizer, "image" if family in VISION_NAMES else "text")
    wide = logits(student, inputs)
    student.save_pretrained(tmp_path)
    narrow = loader(family).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    found = logits(narrow, inputs)
    assert found.dtype == torch.bfloat16 and found.isfinite().all()
    assert (found.float() - wide).norm() < 0.1 * wide.norm()
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    rules = narrow._prompt_rules
    options["suppress_tokens"] = (
        [t for t in (rules.image_token_id, rules.video_token_id) if t is not None] if rules else None
    )
    assert narrow.generate(**inputs, **options).shape[1] == inputs["input_ids"].shape[1] + 4


def test_public_names():
    assert linmu.LinMUForConditionalGeneration is LinMUForConditionalGeneration
    assert linmu.LinMUForCausalLM is LinMUForCausalLM


def refused(folder, match: str) -> None:
    for cls in (LinMUForConditionalGeneration, LinMUForCausalLM):
        with pytest.raises(InputError, match=match) as caught:
            cls.from_pretrained(folder)
        assert "\n" not in str(caught.value)


def test_what_is_no_student_is_refused(tmp_path):
    refused(tmp_path / "none", "no .*none/config.json; fix: give a folder with config.json")
    teacher, _ = tiny_model("llama")
    teacher.save_pretrained(tmp_path / "teacher")
    refused(tmp_path / "teacher", "is not a student; got a model of type 'llama'.*fix: linmu convert")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    refused(broken, "config.json is not valid JSON")
    (broken / "config.json").write_text('["linmu_llama"]')
    refused(broken, "config.json; got list; expected a JSON object")
    (broken / "config.json").write_text('{"model_type": "linmu_gpt9", "linmu": {}}')
    refused(broken, "'gpt9' is not supported")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tapz": 3}, "unknown M-MATE setting; got tapz"),
        ({"decay": "both"}, "mmate.decay; got 'both'"),
        ({"rule": "delta"}, "mmate.rule; got 'delta'; expected one of gated, gated_delta"),
        ({"rule": "gated_delta"}, "lacks weights of the student; got no .*beta_proj.bias"),
        (None, "is not a student; got a model of type 'linmu_llama' without M-MATE settings"),
    ],
)
def test_damaged_settings_are_refused(change, match, tmp_path):
    student, _ = fresh_student("llama")
    student.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    if change is None:
        del config["linmu"]
    else:
        config["linmu"].update(change)
    path.write_text(json.dumps(config))
    refused(tmp_path, match)


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_either_public_class_loads_any_student(family, tmp_path):
    student, _ = fresh_student(family)
    student.save_pretrained(tmp_path)
    for cls in (LinMUForConditionalGeneration, LinMUForCausalLM):
        assert type(cls.from_pretrained(tmp_path)) is type(student)


def test_missing_weights_do_not_pass_silently(tmp_path):
    fresh_student("llama")[0].save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.self_attn.scan_forward.a_log"]
    save_file(tensors, path, {"format": "pt"})
    refused(tmp_path, "scan_forward.a_log")
