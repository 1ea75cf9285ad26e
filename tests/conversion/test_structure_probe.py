"""Decoders inside vision-language models: carried exactly, or refused before anything is replaced."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import nn

from linmu.config import MMateConfig
from linmu.conversion.convert import convert
from linmu.conversion.decoder_rules import require_decoder
from linmu.conversion.structure_probe import check_student
from linmu.conversion.teacher_record import record_teacher
from linmu.errors import InputError
from linmu.families import FAMILIES
from linmu.model.modeling import decoder_layers
from tests.tiny import randomise, text_settings, tiny_model, tiny_tokenizer

ROPE = {"rope_theta": 1e4}
PROBED = "does something that a student does not"


def llava(model_type: str, **settings) -> hf.PreTrainedModel:
    """A tiny LLaVA around a text decoder of any kind."""
    tokenizer = tiny_tokenizer("llava")
    text = text_settings(len(tokenizer), head_dim=True, model_type=model_type, **settings)
    vision = dict(
        model_type="clip_vision_model",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=14,
        image_size=42,
        intermediate_size=40,
    )
    config = hf.LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=tokenizer.image_token_id, image_seq_length=9
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.LlavaForConditionalGeneration(config)
    randomise(model, 0)
    return model.float().eval()


CARRIED = {
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "seed_oss": {},
    "llama": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0},
    },
    "granite": {"attention_multiplier": 0.25},  # its other multipliers are 1, and 0.25 is 16^-0.5
    "smollm3": {"no_rope_layers": [1, 1, 1]},
}


@pytest.mark.parametrize("kind", CARRIED)
def test_a_decoder_like_llamas_is_carried(kind):
    teacher = llava(kind, **CARRIED[kind])
    record = record_teacher(teacher, FAMILIES["llava"])
    with torch.inference_mode():
        torch.testing.assert_close(record.logits, teacher(**record.arguments).logits)
    assert [len(x) for x in (record.inputs, record.attention_inputs, record.mixed)] == [3, 3, 3]
    student = convert(teacher, MMateConfig())  # without a text window, which would see all of so short a prompt
    with torch.inference_mode():  # the mixers do take part again
        assert (student(**record.arguments).logits - record.logits).abs().max() > 0.1


@pytest.mark.parametrize(
    ("rope_type", "settings"),
    [
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 1024}),
        (
            "llama3",
            {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        ),
        ("default", {"partial_rotary_factor": 0.5}),  # transformers' Llama turns all channels, and so does a student
    ],
)
def test_static_rotary_scaling_is_carried(rope_type, settings):
    convert(llava("llama", rope_parameters={**ROPE, "rope_type": rope_type, **settings}))


REFUSED = [
    # multipliers and scales
    ("granite", {"attention_multiplier": 0.25, "embedding_multiplier": 1.01}, "what the first layer gets differs"),
    ("granite", {"attention_multiplier": 0.25, "residual_multiplier": 0.22}, f"{PROBED} .layer 0 "),
    ("granite", {"attention_multiplier": 0.0078}, "layer 0: attention differs"),
    # layers without positions, other rotations, scales that grow with the position
    ("smollm3", {"no_rope_layers": [1, 0, 1]}, "layer 1: attention differs"),
    ("ernie4_5", {}, "layer 0: attention differs"),
    (
        "ministral3",
        {
            "rope_parameters": {
                **ROPE,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 1024,
                "llama_4_scaling_beta": 0.1,
            }
        },
        "layer 0: attention differs",
    ),
    ("glm", {}, "weights that a student does not carry; got layers.0.mlp.gate_up_proj"),
    # windows longer than any probe
    ("mistral", {"sliding_window": 4096}, "layer 0 with a window of 4096 tokens.*text_config"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 1}, "layer 1 with a window"),
    ("cwm", {}, "sliding-window attention"),
    # other layers: norms, parallel blocks, experts, soft caps, sinks
    ("gemma", {}, "activation of the gemma decoder; got gelu"),
    ("gemma2", {}, "post_feedforward_layernorm"),
    ("phi3", {}, "gate_up_proj|qkv_proj"),
    ("olmo", {}, "lacks weights that a student has"),
    ("olmo2", {}, "post_feedforward_layernorm"),
    ("cohere", {}, "no layers.0.post_attention_layernorm"),
    ("stablelm", {}, "input_layernorm.bias"),
    ("mixtral", {}, "mlp.experts"),
    ("gpt_oss", {}, "experts|sinks"),
    # activations and rotary positions that depend on the length
    ("llama", {"hidden_act": "gelu"}, "activation of the llama decoder; got gelu; expected silu"),
    ("llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}}, "rope_type .*got dynamic"),
    (
        "llama",
        {
            "rope_parameters": {
                **ROPE,
                "rope_type": "longrope",
                "factor": 2.0,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 64,
            }
        },
        "rope_type .*got longrope",
    ),
]


@pytest.mark.parametrize(("kind", "settings", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_decoder_that_does_something_else_is_refused_and_left_alone(kind, settings, message):
    teacher = llava(kind, **settings)
    attention = [getattr(layer, "self_attn", None) for layer in decoder_layers(teacher)]
    with pytest.raises(InputError, match=message) as caught:
        convert(teacher)
    assert "\n" not in str(caught.value) and "fix: " in str(caught.value)
    if "step form" not in str(caught.value) and "gets" not in str(caught.value):
        assert [getattr(layer, "self_attn", None) for layer in decoder_layers(teacher)] == attention


def test_half_precision_hides_nothing():
    teacher = llava("granite", attention_multiplier=0.25, embedding_multiplier=1.004).to(torch.bfloat16)
    with pytest.raises(InputError, match="what the first layer gets differs"):
        convert(teacher)
    teacher = llava("llama").to(torch.bfloat16)
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    record = record_teacher(teacher, FAMILIES["llava"])
    assert {x.dtype for x in (*record.inputs, *record.mixed, record.logits)} == {torch.float32}
    assert all(torch.equal(value, before[name]) for name, value in teacher.named_parameters())
    exact = llava("llama")
    for name, value in exact.named_parameters():
        value.data.copy_(before[name])
    for mine, theirs in zip(exact.buffers(), teacher.buffers(), strict=True):  # .to() rounds the frequencies, too
        mine.copy_(theirs)
    with torch.inference_mode():
        torch.testing.assert_close(record.logits, exact(**record.arguments).logits, rtol=1e-4, atol=1e-4)
    convert(teacher)


class Scaled(nn.Module):
    """A module whose output is a little larger."""

    def __init__(self, inner: nn.Module, factor: float):
        super().__init__()
        self.inner, self.factor = inner, factor

    def __getattr__(self, name: str):
        return super().__getattr__(name) if name in ("inner", "factor") else getattr(self.inner, name)

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs) * self.factor


@pytest.mark.parametrize("family", ["qwen3_vl", "llama"])
def test_a_student_that_is_not_its_teacher_is_named_by_layer(family):
    """What no table lists, in one layer only: an MLP, a norm, a projection, the head."""
    teacher, _ = tiny_model(family)
    record = record_teacher(teacher, FAMILIES[family])
    student = convert(teacher)
    layers = decoder_layers(student)
    check_student(student, record)

    plain = layers[1].mlp
    layers[1].mlp = Scaled(plain, 1.001)  # of the student; its step form reads the same weights as ever
    with pytest.raises(InputError, match=r"\(layer 1 differs\)"):
        check_student(student, record)
    layers[1].mlp = plain

    for weight, place in (
        (layers[2].mlp.down_proj.weight, "the last norm differs"),
        (layers[0].post_attention_layernorm.weight, r"\(layer 0 differs\)"),
        (layers[1].self_attn.flex.v_proj.weight, r"\(layer 1: attention differs\)"),
        (layers[1].self_attn.o_proj.weight, r"\(layer 1: attention differs\)"),
        (layers[1].input_layernorm.weight, r"\(layer 1: what attention gets differs\)"),
    ):
        kept = weight.data.clone()
        weight.data *= 1.002
        with pytest.raises(InputError, match=place):
            check_student(student, record)
        weight.data.copy_(kept)
    student.get_decoder().rotary_emb.attention_scaling *= 1.001
    with pytest.raises(InputError, match="layer 0: attention differs"):
        check_student(student, record)


def test_the_step_form_is_checked_by_itself(monkeypatch):
    """The same weights, packed or computed otherwise: only the step form shows it."""
    from linmu.step import pack

    teacher, _ = tiny_model("qwen3_vl")
    record = record_teacher(teacher, FAMILIES["qwen3_vl"])
    student = convert(teacher)
    original = pack.frequency_matrix
    monkeypatch.setattr(pack, "frequency_matrix", lambda *given: original(*given).flip(0))  # time and column exchanged
    with pytest.raises(InputError, match="layer 0 of the step form: attention differs"):
        check_student(student, record)


def test_a_config_that_contradicts_itself_is_one_line():
    rope = {**ROPE, "rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}
    with pytest.raises(InputError, match="the teacher itself cannot run"):
        convert(llava("llama", rope_parameters=rope))


def test_parts_alone_are_judged_without_computing():
    with torch.device("meta"):
        config = hf.MixtralConfig(
            num_hidden_layers=1,
            num_local_experts=2,
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=16,
            vocab_size=11,
        )
        model = hf.MixtralForCausalLM(config)
    with pytest.raises(InputError, match="mixtral decoder has weights that a student does not carry"):
        require_decoder(model)


class Capped(hf.LlamaForCausalLM):
    """A Llama whose logits are capped softly, as Gemma's are, where no part and no config tells."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 30 * (output.logits / 30).tanh()
        return output


def test_a_soft_cap_of_logits_is_seen():
    teacher, _ = tiny_model("llama")
    teacher.__class__ = Capped
    with pytest.raises(InputError, match=r"\(logits differs\)"):
        convert(teacher)


@pytest.mark.parametrize(("name", "value"), [("softcap", 50.0), ("sliding_window", 1024), ("s_aux", torch.ones(4))])
def test_what_attention_functions_are_told_is_seen(name, value):
    """Attention leaves out what it does not know, caps are far above scores, and 37 tokens fit into any window."""
    teacher, _ = tiny_model("llama")
    teacher.set_attn_implementation("eager" if name == "softcap" else "sdpa")
    for layer in decoder_layers(teacher)[1:]:
        plain = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, _plain=plain, **kwargs: _plain(*args, **{**kwargs, name: value})
    with pytest.raises(InputError, match=f"layer 1.*{'window of 1024' if name == 'sliding_window' else name}"):
        convert(teacher)
