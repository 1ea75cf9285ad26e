"""Conversion: in place, weights moved, scales chosen, and the two limits in which a student is its teacher."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers.modeling_utils import AttentionInterface

import linmu
from linmu.config import MMateConfig, converted_with
from linmu.conversion.convert import convert
from linmu.errors import InputError
from linmu.families import FAMILIES, get_family
from linmu.model.mmate import MMateBlock
from linmu.model.modeling import LinMUForCausalLM, LinMUForConditionalGeneration, decoder_layers
from linmu.model.rotary import use_exact_angles
from tests.model.students import SMALL, cases, new_parameters
from tests.tiny import FAMILY_NAMES, VISION_NAMES, tiny_inputs, tiny_model

CASES = cases()


def tolerance(family: str) -> dict[str, float]:
    """Of float64 comparisons; Qwen3's own q and k norms compute in float32 whatever they are given."""
    return dict.fromkeys(("rtol", "atol"), 1e-4 if family.startswith("qwen3") else 1e-9)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_conversion_is_in_place_and_keeps_the_scale(family, kind):
    teacher, tokenizer = tiny_model(family)
    probe = tiny_inputs(family, teacher, tokenizer, kind)
    kept = {name: value.data_ptr() for name, value in teacher.named_parameters()}
    count, calls = len(decoder_layers(teacher)), []
    student = convert(teacher, MMateConfig(**SMALL), probe, lambda done, total: calls.append((done, total)))
    assert student is teacher and calls == [(n, 2) for n in (1, 2)]
    now = {
        name.replace("self_attn.flex.", "self_attn."): value.data_ptr() for name, value in student.named_parameters()
    }
    norms = ("q_norm.weight", "k_norm.weight")  # copied: the student's norm is its own module
    assert all(now[name] == pointer for name, pointer in kept.items() if not name.endswith(norms))
    for layer in decoder_layers(student):
        block = layer.self_attn
        if block.swin is not None:
            for name, value in block.flex.named_parameters():
                twin = block.swin.get_parameter(name)
                assert torch.equal(twin, value) and twin.data_ptr() != value.data_ptr()
    report = student.conversion_report
    assert report.probe_tokens == probe["input_ids"].numel() and 0 <= report.token_agreement <= 1
    assert [layer.layer for layer in report.layers] == list(range(count)) and len(report.hidden_nmse) == count
    for layer, hidden in zip(report.layers, report.hidden_nmse, strict=True):
        assert 0.3 < layer.rms_ratio < 1.5 and -1 <= layer.cosine <= 1
        assert 0 < layer.nmse < 4 and 0 < hidden < 10
        assert layer.nmse <= layer.tries["blind"] and {"decay", "alpha"} & set(layer.tries)
        assert layer.nmse == layer.tries[layer.used] == min(layer.tries.values())
    assert len(json.loads(json.dumps(report.to_json()))["layers"]) == count


@pytest.mark.parametrize("settings", [{}, {"text_window": 3, "text_sinks": 2}], ids=str)
def test_the_report_is_what_its_own_student_does(settings):
    """Every layer's nmse, measured again: the student's block on the teacher's inputs, by hooks of our own."""
    teacher, tokenizer = tiny_model("llava")
    probes = [tiny_inputs("llava", teacher, tokenizer, kind) for kind in ("image", "text")]
    calls: dict[int, list[tuple]] = {}
    for index, layer in enumerate(decoder_layers(teacher)):
        layer.self_attn.register_forward_hook(
            lambda _, __, kwargs, output, i=index: calls.setdefault(i, []).append((kwargs, output[0])),
            with_kwargs=True,
        )
    with torch.inference_mode():
        for probe in probes:
            teacher(**probe, use_cache=False)
    for layer in decoder_layers(teacher):
        layer.self_attn._forward_hooks.clear()
    student = convert(teacher, MMateConfig(**{**SMALL, **settings}), probes)
    for index, layer in enumerate(decoder_layers(student)):
        error = squares = 0.0
        for probe, (kwargs, wanted) in zip(probes, calls[index], strict=True):
            layout = student.layout_tensors(probe["input_ids"], None, None, probe)
            with torch.inference_mode():
                own = MMateBlock.forward(
                    layer.self_attn, kwargs["hidden_states"], kwargs["position_embeddings"], None, None, layout
                )[0]
            error += float((own - wanted).square().sum())
            squares += float(wanted.square().sum())
        assert student.conversion_report.layers[index].nmse == pytest.approx(error / squares, rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"text_window": 5},
        {"text_window": 4, "text_sinks": 1, "text_window_projections": "shared"},
        {"decay": "kv_head"},
        {"rule": "gated_delta"},
        {"rule": "gated_delta", "decay": "kv_head", "text_window": 5},
        {"skip": True},
        {"backward": False},
        {"local_swin": False},
        {"rope": False},
        {"scan": "raster"},
        {"taps": 2},
        {"causal_windows": True},
        {"max_span_frames": 1},
        {"backward": False, "local_swin": False, "text_window": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["qwen3_vl", "llama"])
def test_every_setting_converts(family, settings):
    teacher, tokenizer = tiny_model(family)
    inputs = tiny_inputs(family, teacher, tokenizer, "video" if family in VISION_NAMES else "text")
    plain = convert(copy.deepcopy(teacher), MMateConfig(**SMALL), inputs)
    student = convert(teacher, MMateConfig(**{**SMALL, **settings}), inputs)
    assert all(0 < layer.nmse < 4 for layer in student.conversion_report.layers)
    assert student.config.linmu == MMateConfig(**{**SMALL, **settings}).to_json()
    with torch.inference_mode():
        logits, default = student(**inputs).logits, plain(**inputs).logits
    assert logits.isfinite().all()
    of_vision = {"backward", "local_swin", "scan", "causal_windows", "max_span_frames"}
    at_init = {"skip", "taps"}
    if set(settings) <= (at_init | of_vision if family == "llama" else at_init):
        torch.testing.assert_close(logits, default)
    else:
        assert (logits - default).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_while_the_text_window_has_seen_all_text_is_the_teachers(family):
    teacher, tokenizer = tiny_model(family)
    teacher = teacher.double()
    use_exact_angles(teacher.get_decoder(), get_family(teacher.config.model_type))  # as its student will have them
    inputs = tiny_inputs(family, teacher, tokenizer, "text")
    with torch.inference_mode():
        expected = teacher(**inputs).logits
        generated = teacher.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    student = convert(teacher, MMateConfig(text_window=generated.shape[1] - 2, text_sinks=2), inputs)
    with torch.inference_mode():
        torch.testing.assert_close(student(**inputs).logits, expected, **tolerance(family))
        assert torch.equal(student.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False), generated)


def captured_heads(model, inputs) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The teacher's own rotated q, k and v [1,H,S,d] of every layer."""
    found, plain = [], AttentionInterface._global_mapping["sdpa"]

    def capture(module, query, key, value, *args, **kwargs):
        if hasattr(module, "q_proj") and query.shape[2] == inputs["input_ids"].shape[1]:
            found.append((query, key, value))
        return plain(module, query, key, value, *args, **kwargs)

    AttentionInterface.register("capture", capture)
    config = model.get_decoder().config
    before, config._attn_implementation_internal = config._attn_implementation_internal, "capture"
    with torch.inference_mode():
        model(**inputs, use_cache=False)
    config._attn_implementation_internal = before
    return found


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_without_decay_and_norms_it_is_linear_attention_of_the_teachers_q_k_v(family, kind):
    teacher, tokenizer = tiny_model(family)
    teacher = teacher.double()
    inputs = tiny_inputs(family, teacher, tokenizer, kind)
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    attention = copy.deepcopy([layer.self_attn for layer in decoder_layers(teacher)])
    heads = captured_heads(teacher, inputs)
    layers = decoder_layers(teacher)
    assert len(heads) == len(layers)
    seen: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(layers):
        layer.self_attn.register_forward_hook(
            lambda module, args, kwargs, output, i=index: seen.update({i: kwargs}), with_kwargs=True
        )
    with torch.inference_mode():
        teacher(**inputs, use_cache=False)
    convert(teacher, MMateConfig(backward=False, local_swin=False, scan="raster"), inputs)
    for index, (q, k, v) in enumerate(heads):
        block = layers[index].self_attn
        block.scan_forward.a_log.data.fill_(-1e4)  # decay 1
        block.scan_forward.norm = nn.Identity()
        with torch.inference_mode():
            y, _ = block(seen[index]["hidden_states"], seen[index]["position_embeddings"], linmu_layout=None)
            repeat = q.shape[1] // k.shape[1]
            scores = (q @ k.repeat_interleave(repeat, 1).mT).tril() * q.shape[-1] ** -0.5
            mixed = (scores @ v.repeat_interleave(repeat, 1)).transpose(1, 2).flatten(2)
            torch.testing.assert_close(y, attention[index].o_proj(mixed), **tolerance(family))


def test_without_a_probe_random_text_serves():
    student = convert(tiny_model("qwen2_5_vl")[0])
    assert student.mmate == converted_with({}) and student.mmate.text_slots == 68
    assert student.conversion_report.probe_tokens == 64 + 68  # some leave the window
    assert convert is linmu.convert_model


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_student_is_of_its_teachers_class(family):
    teacher, tokenizer = tiny_model(family)
    cls = type(teacher)
    student = convert(teacher, probe=tiny_inputs(family, teacher, tokenizer, "text"))
    assert isinstance(student, cls) and type(student) is not cls
    assert isinstance(student, LinMUForConditionalGeneration if family in VISION_NAMES else LinMUForCausalLM)
    assert student.config.model_type == "linmu_" + family.removesuffix("_dinov2")


def test_a_padded_probe_with_media_sets_the_same_scales_as_its_tokens():
    teacher, tokenizer = tiny_model("qwen3_vl")
    probe = tiny_inputs("qwen3_vl", teacher, tokenizer, "image")
    padded = dict(probe)
    for name, fill in {"input_ids": 0, "attention_mask": 0, "mm_token_type_ids": 0}.items():
        padded[name] = torch.nn.functional.pad(probe[name], (5, 0), value=fill)
    found = [convert(copy.deepcopy(teacher), MMateConfig(**SMALL), inputs) for inputs in (probe, padded)]
    for name, value in new_parameters(found[0]).items():
        np.testing.assert_allclose(new_parameters(found[1])[name].detach(), value.detach(), rtol=1e-3, atol=1e-3)


def test_an_unknown_family_is_refused_in_one_line():
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11)
    with pytest.raises(InputError, match="'gpt2' is not supported; expected one of idefics3, internvl") as caught:
        convert(transformers.GPT2LMHeadModel(config))
    assert "\n" not in str(caught.value) and all(name in str(caught.value) for name in FAMILIES)


def test_sliding_window_teachers_are_refused():
    config = transformers.Qwen2Config(
        vocab_size=17,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
    )
    with pytest.raises(InputError, match="sliding-window attention; got layer 1"):
        convert(transformers.Qwen2ForCausalLM(config))


def test_new_students_have_a_text_window_and_may_be_without():
    window = {"text_window": 64, "text_sinks": 4, "text_window_projections": "shared"}
    assert converted_with({}) == MMateConfig(**window)
    assert converted_with({"taps": 3, "text_window": 9}) == MMateConfig(**{**window, "taps": 3, "text_window": 9})
    assert converted_with({"text_window": 0, "taps": 3}) == MMateConfig(taps=3)
    assert MMateConfig.from_json({}) == MMateConfig() and MMateConfig().text_window == 0  # students that do not say
    with pytest.raises(InputError, match="text_sinks"):
        converted_with({"text_window": 0, "text_sinks": 2})
    with pytest.raises(InputError, match="text_window_projections.*own, shared"):
        converted_with({"text_window_projections": "none"})
