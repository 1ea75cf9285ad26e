from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from linmu.config import MMateConfig
from linmu.errors import InputError
from linmu.tools.decoder_sizes import DecoderSizes
from linmu.tools.inspect import CONTEXTS, inspect_folder
from tests.bundles import STATES, tiny_bundle

# Qwen2.5-VL-7B's decoder: the example of 49 MiB in fp32, as much as about 900 tokens of its fp16 KV cache.
QWEN = DecoderSizes(layers=28, hidden_size=3584, intermediate_size=18944, heads=28, kv_heads=4, head_dim=128)


def test_state_of_a_known_model():
    recurrent, conv = 28 * 28 * 128 * 128, 28 * (28 + 8) * 128 * 3
    assert QWEN.state_bytes(MMateConfig()) == 4 * (recurrent + conv)
    assert QWEN.state_bytes(MMateConfig(decay="kv_head")) == 4 * (recurrent // 7 + conv)
    assert QWEN.state_bytes(MMateConfig(text_window=5)) - QWEN.state_bytes(MMateConfig()) == 4 * 28 * 2 * 4 * 128 * 5
    assert QWEN.cache_bytes(1) == 28 * 2 * 4 * 128 * 2
    assert 850 < 4 * recurrent / QWEN.cache_bytes(1) < 950


def test_bundle(tmp_path):
    found = inspect_folder(tiny_bundle(tmp_path / "b"))
    assert (found.kind, found.target, found.parameters, found.weight_bytes) == ("bundle", "onnx", 1234, 5 + 200)
    assert found.state_bytes == 4 * (150 + 210) and len(found.state) == len(STATES)
    assert [item.context for item in found.forecast] == list(CONTEXTS) and CONTEXTS[-1] == 128 * 1024
    first, last = found.forecast[0], found.forecast[-1]
    assert first.decode_bytes == last.decode_bytes == found.weight_bytes + found.state_bytes
    assert last.teacher_cache_bytes == 128 * first.teacher_cache_bytes == 2 * 1 * 2 * 5 * 2 * 128 * 1024
    assert last.prefill_bytes - last.decode_bytes == 128 * (first.prefill_bytes - first.decode_bytes)
    json.dumps(found.to_json(), allow_nan=False)


def student_folder(folder, **changes):
    folder.mkdir()
    text = {"num_hidden_layers": 3, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4}
    config = {"model_type": "linmu_llava", "linmu": MMateConfig(taps=3).to_json(), "text_config": text, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros((3, 5), np.float16)}, folder / "model.safetensors")
    return folder


def test_student(tmp_path):
    found = inspect_folder(student_folder(tmp_path / "s"))
    assert (found.kind, found.family, found.parameters, found.weight_bytes) == ("student", "llava", 15, 30)
    assert found.sizes == DecoderSizes(3, 24, 40, 4, 4, 6)
    assert found.state_bytes == 4 * 3 * (4 * 6 * 6 + 12 * 6 * 2)


def test_presets_are_told_of_students_that_can_be_exported(tmp_path):
    for rule, wanted in (("gated", True), ("gated_delta", False)):
        changes = {"linmu": MMateConfig(rule=rule).to_json(), "vocab_size": 11, "model_type": "linmu_llama"}
        text = {"num_hidden_layers": 3, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4}
        found = inspect_folder(student_folder(tmp_path / rule, **changes, **text, text_config=None))
        assert bool(found.presets) == wanted


def test_neither(tmp_path):
    with pytest.raises(InputError, match="neither a bundle nor a student"):
        inspect_folder(tmp_path)
    with pytest.raises(InputError, match="is not a student; got a model of type 'qwen2'.*linmu convert"):
        inspect_folder(student_folder(tmp_path / "t", model_type="qwen2", linmu=None))
    with pytest.raises(InputError, match="num_hidden_layers"):
        inspect_folder(student_folder(tmp_path / "u", text_config={}))
