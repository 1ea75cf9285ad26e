"""GGUF files: everything in them is carried or refused; the reference is the model that the file was written from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from linmu.conversion.convert import convert
from linmu.errors import InputError
from linmu.formats.gguf_file import read_gguf
from linmu.formats.gguf_rules import llama3_divisors
from linmu.formats.model_files import read_model_folder
from linmu.model.folders import load_teacher
from tests.tiny import randomise, text_settings

gguf = pytest.importorskip("gguf")

VOCAB, BASE = 29, 1e4
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}


def gguf_name(name: str) -> str:
    for theirs, ours in {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}.items():
        name = name.replace(theirs, ours)
    for theirs, ours in NAMES.items():
        name = name.replace(f".{theirs}.", f".{ours}.")
    return name.replace("model.layers.", "blk.")


def reference(kind: str = "llama", rope: dict | None = None, **settings) -> hf.PreTrainedModel:
    cls = {"llama": hf.LlamaForCausalLM, "qwen2": hf.Qwen2ForCausalLM, "qwen3": hf.Qwen3ForCausalLM}[kind]
    rope = {"rope_theta": BASE, "rope_type": "default", **(rope or {})}
    settings = text_settings(VOCAB, head_dim=kind != "qwen2", rope_parameters=rope, **settings)
    config = cls.config_class(**{**settings, "max_position_embeddings": 131072})
    model = cls(config)
    randomise(model, 3)
    return model.float().eval()


def write(model: hf.PreTrainedModel, folder: Path, extra=lambda writer: None, tensors=None) -> Path:
    """A GGUF file as llama.cpp's converter makes it: Llama's rows of q and k interleaved."""
    folder.mkdir()
    config, arch = model.config, model.config.model_type
    writer = gguf.GGUFWriter(folder / "m.gguf", arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(BASE)
    writer.add_vocab_size(VOCAB)
    if arch != "qwen2":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if arch == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    extra(writer)
    for name, value in model.state_dict().items():
        array = value.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if arch == "llama" and name.endswith(part + ".weight"):
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(array))
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def logits(model: hf.PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(3, 26)[None]
    with torch.inference_mode():
        return model(input_ids=ids, position_ids=3 * torch.arange(23)[None]).logits


def llama31(factor: float = 8.0) -> tuple[hf.PreTrainedModel, np.ndarray]:
    """A model with Llama 3.1's scaling, and transformers' divisors of its frequencies."""
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = reference(rope=scaling)
    plain = reference().model.rotary_emb.inv_freq
    return model, (plain / model.model.rotary_emb.inv_freq).numpy()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_file_is_the_model_it_was_written_from(kind, tmp_path):
    model = reference(kind)
    teacher = load_teacher(read_model_folder(write(model, tmp_path / "m")))
    torch.testing.assert_close(logits(teacher), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_frequencies_of_llama_3_1_are_carried(factor, tmp_path):
    model, divisors = llama31(factor)
    assert divisors.min() == 1 and divisors.max() == factor and len(set(divisors)) > 2
    np.testing.assert_allclose(llama3_divisors(8, BASE, model.config.rope_parameters), divisors, rtol=1e-6)
    teacher = load_teacher(read_model_folder(write(model, tmp_path / "m", tensors={"rope_freqs.weight": divisors})))
    assert torch.equal(teacher.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    torch.testing.assert_close(logits(teacher), logits(model), rtol=1e-5, atol=1e-5)
    assert (logits(teacher) - logits(reference())).abs().max() > 0.01  # what was dropped before
    student = convert(teacher)
    assert student.config.rope_parameters["rope_type"] == "llama3"


def test_linear_scaling_is_carried(tmp_path):
    model = reference(rope={"rope_type": "linear", "factor": 4.0})

    def linear(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    teacher = load_teacher(read_model_folder(write(model, tmp_path / "m", linear)))
    torch.testing.assert_close(logits(teacher), logits(model), rtol=1e-5, atol=1e-5)
    assert (logits(teacher) - logits(reference())).abs().max() > 0.01


def yarn(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)


REFUSED = [
    (yarn, {}, "rope.scaling; got yarn 4"),
    (lambda w: w.add_rope_scaling_attn_factors(0.5), {}, "rope.scaling; got attn_factor 0.5"),
    (lambda w: w.add_uint32("llama.attention.sliding_window", 512), {}, "got llama.attention.sliding_window"),
    (lambda w: w.add_float32("llama.logit_scale", 0.5), {}, "got llama.logit_scale"),
    (lambda w: w.add_array("llama.rope.dimension_sections", [3, 3, 2]), {}, "got llama.rope.dimension_sections"),
    (lambda w: w.add_uint16("split.count", 2), {}, "is one part of several"),
    (lambda w: w.add_string("general.type", "adapter"), {}, "is no model; got general.type adapter"),
    (lambda w: None, {"rope_freqs.weight": np.linspace(1, 2, 8, dtype=np.float32)}, "got divisors by another rule"),
    (lambda w: None, {"blk.1.attn_q.bias": np.ones(64, np.float32)}, "llama model has not; got blk.1.attn_q.bias"),
    (lambda w: None, {"blk.3.ffn_up.weight": np.ones((80, 48), np.float32)}, "got blk.3.ffn_up.weight"),
    (lambda w: None, {"blk.0.ffn_gate_exps.weight": np.ones((2, 80, 48), np.float32)}, "blk.0.ffn_gate_exps"),
]


@pytest.mark.parametrize(("extra", "tensors", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_what_would_be_dropped_is_refused_by_name(extra, tensors, message, tmp_path):
    folder = write(reference(), tmp_path / "m", extra, tensors)
    with pytest.raises(InputError, match=message) as caught:
        read_model_folder(folder)
    assert "\n" not in str(caught.value) and "fix: " in str(caught.value)


def test_partial_rotation_is_refused(tmp_path):
    folder = write(reference("qwen3"), tmp_path / "m", lambda writer: writer.add_rope_dimension_count(8))
    with pytest.raises(InputError, match="qwen3.rope.dimension_count; got 8; expected 16, the size of a head"):
        read_model_folder(folder)


def test_keys_without_effect_are_let_pass(tmp_path):
    def harmless(writer):
        writer.add_uint32("llama.expert_count", 0)
        writer.add_string("general.quantized_by", "somebody")
        writer.add_string("mradermacher.quantized_at", "somewhere")
        writer.add_array("tokenizer.ggml.scores", [1.0, 2.0])

    folder = write(reference(), tmp_path / "m", harmless, {"rope_freqs.weight": np.ones(8, np.float32)})
    found = read_model_folder(folder)
    assert read_gguf(folder / "m.gguf").arrays == ("tokenizer.ggml.scores",)
    torch.testing.assert_close(logits(load_teacher(found)), logits(reference()), rtol=1e-5, atol=1e-5)
