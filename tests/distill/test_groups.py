from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from linmu.distill.groups import PATTERNS, group_of, grouped_parameters, optimizer_groups, set_trainable
from linmu.distill.lora import adapted_weights, add_adapters, merge_adapters, target_modules
from linmu.distill.recipe import Lora
from linmu.errors import InputError
from linmu.model.modeling import decoder_layers
from tests.model.students import fresh_student, prompt_of, shared_student
from tests.tiny import FAMILY_NAMES, VISION_NAMES

EVERYTHING = {"skip": True, "text_window": 3}
PREFIXES = {
    "flex_new": ("scan_forward.", "scan_backward.", "gate_forward.", "gate_backward."),
    "flex_inherited": ("flex.",),
    "swin": ("swin.",),
    "alpha": ("alpha.",),
    "output": ("o_proj.",),
}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_parameter_of_a_block_is_in_exactly_one_group(family):
    student, _ = shared_student(family, **EVERYTHING)
    for index, layer in enumerate(decoder_layers(student)):
        for name, _ in layer.self_attn.named_parameters():
            full = f"layers.{index}.self_attn.{name}"
            assert sum(bool(re.search(pattern, full)) for pattern in PATTERNS.values()) == 1, full
            assert name.startswith(PREFIXES[group_of(full)]), full


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_decoder_is_covered_and_the_vision_tower_is_not(family):
    student, _ = shared_student(family, **EVERYTHING)
    found = {name: group for name, _, group in grouped_parameters(student)}
    decoder = student.get_decoder()
    inside = {id(weight) for weight in decoder.parameters()} | {id(student.get_output_embeddings().weight)}
    assert {name for name, weight in student.named_parameters() if id(weight) in inside} == set(found)
    assert not any("visi" in name or "connector" in name or "projector" in name for name in found)


def test_only_the_groups_of_a_stage_are_trained():
    student, _ = fresh_student("qwen3_vl", "image", **EVERYTHING)
    found = set_trainable(student, {"swin": 0.5, "alpha": 0.25, "mlp": 0.0})
    names = {item.name for item in found}
    assert {item.group for item in found} == {"swin", "alpha"}
    assert names == {name for name, weight in student.named_parameters() if weight.requires_grad}
    assert {item.rate for item in found if item.group == "swin"} == {0.5}
    with pytest.raises(InputError, match="trains nothing"):
        set_trainable(student, {"lora": 1.0})


def test_no_decay_on_time_scales_norms_biases_and_gates():
    student, _ = fresh_student("qwen2_5_vl", "image", **EVERYTHING, rule="gated_delta")
    found = set_trainable(student, {group: 1e-3 for group in PATTERNS})
    decays = {item.name for item in found if item.decays}
    assert not any(weight.ndim < 2 for name, weight in student.named_parameters() if name in decays)
    for part in (
        "a_log",
        "dt_bias",
        "skip",
        "norm",
        "gate_forward",
        "gate_backward",
        "alpha",
        "dt_proj",
        "beta_proj",
        "conv_",
        "bias",
    ):
        assert not any(part in name for name in decays), part
    for part in ("flex.q_proj.weight", "swin.v_proj.weight", "o_proj.weight", "mlp.gate_proj.weight"):
        assert any(name.endswith(part) for name in decays), part
    groups = optimizer_groups(found, 0.1)
    assert sum(len(group["params"]) for group in groups) == len(found)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_adapters_stand_where_they_should(family):
    student, _ = shared_student(family)
    names = target_modules(student, Lora(targets=("mlp", "output")))
    assert len(names) == 4 * len(decoder_layers(student))
    assert {name.rsplit(".", 1)[1] for name in names} == {"gate_proj", "up_proj", "down_proj", "o_proj"}
    assert not any("visi" in name or "lm_head" in name or ".flex." in name or ".swin." in name for name in names)
    assert len(target_modules(student, Lora(targets=("mlp",)))) == 3 * len(decoder_layers(student))


@pytest.mark.parametrize("family", ["smolvlm", "qwen3"])
def test_merged_adapters_give_the_adapted_outputs(family):
    _, _, inputs = prompt_of(family, "image" if family in VISION_NAMES else "text")
    student, _ = fresh_student(family, "image" if family in VISION_NAMES else None)
    student = student.double()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    before, names = student(**inputs).logits, sorted(student.state_dict())
    adapters = add_adapters(student, Lora(rank=3, alpha=6, targets=("mlp", "output")), seed=1)
    trained = set_trainable(student, {"lora": 1e-3})
    assert len(trained) == 2 * 4 * len(decoder_layers(student)) == 2 * len(adapted_weights(adapters))
    torch.testing.assert_close(student(**inputs).logits, before)  # B is zero at the start
    with torch.no_grad():
        for item in trained:
            item.parameter.add_(0.1 * torch.randn_like(item.parameter))
    adapted = student(**inputs).logits
    assert (adapted - before).abs().max() > 1e-3
    merged = merge_adapters(adapters)
    assert merged is student and sorted(merged.state_dict()) == names
    torch.testing.assert_close(merged(**inputs).logits, adapted, rtol=1e-9, atol=1e-9)


def test_adapters_start_alike_for_a_seed():
    found = []
    for seed in (1, 1, 2):
        student, _ = fresh_student("llama")
        add_adapters(student, replace(Lora(), rank=2), seed)
        found.append(torch.cat([w.flatten() for n, w in student.named_parameters() if "lora_A" in n]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
