from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from linmu.errors import InputError
from linmu.formats.gguf_file import read_gguf
from linmu.formats.model_files import INDEX_NAME, read_model_folder


def write_model(folder, config=None, shards=None):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "qwen2"}))
    shards = shards or {"model.safetensors": {"a": np.zeros((3, 5), np.float32)}}
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    if len(shards) > 1:
        table = {key: name for name, tensors in shards.items() for key in tensors}
        (folder / INDEX_NAME).write_text(json.dumps({"weight_map": table}))
    return folder


TWO_SHARDS = {
    "model-00001-of-00002.safetensors": {"a": np.zeros((3, 5), np.float32)},
    "model-00002-of-00002.safetensors": {"b": np.zeros(7, np.float16)},
}


def test_single_file(tmp_path):
    model = read_model_folder(write_model(tmp_path / "m"))
    assert (model.family.name, model.parameters, model.parameter_bytes, model.gguf) == ("qwen2", 15, 60, None)
    assert [path.name for path in model.weights] == ["model.safetensors"]


def test_shards_and_a_stray_file_that_the_index_does_not_name(tmp_path):
    folder = write_model(tmp_path / "m", shards=TWO_SHARDS)
    save_file({"stray": np.zeros(99, np.float32)}, folder / "consolidated.safetensors")
    model = read_model_folder(folder)
    assert (model.parameters, model.parameter_bytes, len(model.weights)) == (22, 74, 2)


def break_index(folder, **changes):
    table = json.loads((folder / INDEX_NAME).read_text())["weight_map"]
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {**table, **changes}}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "model-00002-of-00002.safetensors").unlink(), "00002.safetensors is missing"),
        (lambda m: break_index(m, c="model-00001-of-00002.safetensors"), "lacks tensor 'c'"),
        (lambda m: break_index(m, c="../other.safetensors"), "without folders"),
        (lambda m: (m / INDEX_NAME).write_text("{}"), "weight_map"),
        (lambda m: (m / INDEX_NAME).write_text("{"), "not valid JSON"),
        (lambda m: (m / "config.json").write_text("[]"), "config.json; got list"),
        (lambda m: (m / "config.json").write_text("{}"), "model_type"),
        (lambda m: (m / "config.json").write_text('{"model_type": "mamba"}'), "'mamba' is not supported"),
        (lambda m: (m / "config.json").write_text('{"model_type": "qwen2", "auto_map": {}}'), "auto_map"),
        (lambda m: (m / "config.json").unlink(), "no .*config.json"),
        (lambda m: (m / "model-00001-of-00002.safetensors").write_bytes(b"x" * 50), "not a whole safetensors"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, damage, message):
    folder = write_model(tmp_path / "m", shards=TWO_SHARDS)
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        read_model_folder(folder)
    assert "\n" not in str(caught.value)


def test_missing_folder_and_file_instead_of_folder(tmp_path):
    with pytest.raises(InputError, match="never downloads"):
        read_model_folder(tmp_path / "Qwen" / "Qwen2.5-VL-7B-Instruct")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        read_model_folder(tmp_path / "file")


def test_no_weights_and_pickles_only(tmp_path):
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        read_model_folder(folder)
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match="pickled weights .pytorch_model.bin.*save_pretrained"):
        read_model_folder(folder)


def gguf_text(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_bytes(architecture="llama"):
    """One F32 tensor of 4x3 and one Q8_0 tensor of 64, made by hand from the format's description."""
    pairs = gguf_text("general.architecture") + struct.pack("<I", 8) + gguf_text(architecture)
    pairs += gguf_text("llama.block_count") + struct.pack("<II", 4, 2)
    pairs += gguf_text("scores") + struct.pack("<IIQ", 9, 6, 2) + struct.pack("<2f", 1, 2)
    pairs += gguf_text("names") + struct.pack("<IIQ", 9, 8, 1) + gguf_text("é")
    tensors = gguf_text("token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 3, 0, 0)
    tensors += gguf_text("output_norm.weight") + struct.pack("<IQIQ", 1, 64, 8, 64)
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 4) + pairs + tensors
    return head + bytes(-len(head) % 32) + bytes(64 + 68)


def test_gguf_folder(tmp_path):
    (tmp_path / "m.gguf").write_bytes(gguf_bytes())
    model = read_model_folder(tmp_path)
    assert (model.family.name, model.gguf, model.weights) == ("llama", tmp_path / "m.gguf", ())
    assert (model.parameters, model.parameter_bytes) == (12 + 64, 48 + 68)
    assert model.config["gguf"] == {"general.architecture": "llama", "llama.block_count": 2}
    (tmp_path / "n.gguf").write_bytes(gguf_bytes())
    with pytest.raises(InputError, match="several GGUF files; got m.gguf, n.gguf"):
        read_model_folder(tmp_path)


def test_gguf_of_another_family(tmp_path):
    (tmp_path / "m.gguf").write_bytes(gguf_bytes("rwkv7"))
    with pytest.raises(InputError, match="rwkv7"):
        read_model_folder(tmp_path)


@pytest.mark.parametrize("kept", [*range(0, 300, 7), -1])
def test_truncated_gguf(tmp_path, kept):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes()[:kept])
    with pytest.raises(InputError, match="m.gguf is not a whole GGUF file"):
        read_gguf(path)


HOSTILE = {
    "nested arrays": (0, gguf_text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000),
    "an array longer than a file offset": (0, gguf_text("k") + struct.pack("<IIQ", 9, 10, 2**62)),
    "strings without end": (0, gguf_text("k") + struct.pack("<IIQ", 9, 8, 2**63)),
    "a text as alignment": (0, gguf_text("general.alignment") + struct.pack("<I", 8) + gguf_text("x")),
    "alignment below 0": (0, gguf_text("general.alignment") + struct.pack("<Ii", 5, -7)),
    "axes without end": (1, gguf_text("k") + struct.pack("<I", 2**32 - 1)),
    "elements without end": (1, gguf_text("k") + struct.pack("<IQQIQ", 2, 2**63, 2**63, 0, 0)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_gguf(tmp_path, name):
    tensors, header = HOSTILE[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, 1 - tensors) + header)
    with pytest.raises(InputError, match="m.gguf is not a whole GGUF file"):
        read_gguf(path)


@pytest.mark.parametrize(("kind", "value"), [("I", 2**32 - 1), ("f", float("nan")), ("f", float("inf"))])
def test_gguf_of_a_senseless_number_of_layers(tmp_path, kind, value):
    right = gguf_text("llama.block_count") + struct.pack("<II", 4, 2)
    wrong = gguf_text("llama.block_count") + struct.pack("<I" + kind, {"I": 4, "f": 6}[kind], value)
    (tmp_path / "m.gguf").write_bytes(gguf_bytes().replace(right, wrong))
    if kind == "I":
        read_model_folder(tmp_path)  # the tensors that it lacks are found missing when they are loaded
        return
    with pytest.raises(InputError, match="llama.block_count; got (nan|inf); expected a number"):
        read_model_folder(tmp_path)


def test_block_sizes_are_those_of_the_gguf_package():
    gguf = pytest.importorskip("gguf")
    from linmu.formats.gguf_file import _BLOCKS

    for kind, block in _BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)] == block
