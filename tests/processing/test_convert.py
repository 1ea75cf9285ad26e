from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from linmu.errors import BundleError, InputError
from linmu.processing import Processor
from linmu.processing.convert import image_settings, video_settings, vocabulary_of, write_processor
from linmu.processing.settings import CropSettings, GridSettings, from_json, to_json
from linmu.processing.settings_file import read_settings
from tests.processing.support import tiny_pair
from tests.tiny import FAMILY_NAMES


def edit(path, **changes):
    data = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({k: v for k, v in {**data, **changes}.items() if v is not None}))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_old_layout_gives_the_same_settings(family, tmp_path):
    _, ours = tiny_pair(family, tmp_path)
    folder = tmp_path / "model"
    if (folder / "processor_config.json").is_file():
        config = json.loads((folder / "processor_config.json").read_text())
        for name, key in (
            ("preprocessor_config.json", "image_processor"),
            ("video_preprocessor_config.json", "video_processor"),
        ):
            if key in config:
                (folder / name).write_text(json.dumps(config.pop(key)))
        (folder / "processor_config.json").write_text(json.dumps(config))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=template)
    write_processor(folder, tmp_path / "again")
    again = Processor.from_folder(tmp_path / "again")
    assert again.settings == ours.settings
    assert again.chat_template == ours.chat_template == template
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "other"}))
    write_processor(folder, tmp_path / "third")
    assert Processor.from_folder(tmp_path / "third").chat_template == "other"


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm", "internvl", "llava", "llama"])
def test_settings_round_trip_and_are_strict(family, tmp_path):
    _, ours = tiny_pair(family, tmp_path)
    path = tmp_path / "bundle" / "processor.json"
    assert read_settings(path) == ours.settings
    data = to_json(ours.settings)
    for section in [name for name in ("image", "tokens", "video") if data[name]]:
        changed = {**data, section: {**data[section], "surprise": 1}}
        with pytest.raises(BundleError, match="surprise"):
            from_json(type(ours.settings), changed, "top level")
    for changed, word in (
        ({**data, "more": 1}, "more"),
        ({**data, "format_version": 2}, "format_version"),
        ({**data, "family": 3}, "family"),
        ({key: value for key, value in data.items() if key != "tokens"}, "tokens"),
        ({**data, "tokens": {**data["tokens"], "eos_token_ids": [True]}}, "eos_token_ids"),
        ([], "top level"),
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(BundleError, match=word):
            read_settings(path)
    path.write_text("{")
    with pytest.raises(InputError, match="processor.json"):
        Processor.from_folder(tmp_path / "bundle")


def test_older_names_of_settings():
    old = {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "image_processor_type": "Qwen2VLImageProcessor",
    }
    grid = image_settings("qwen2_5_vl", old)
    assert isinstance(grid, GridSettings)
    assert (grid.min_pixels, grid.max_pixels, grid.merge_size, grid.resample) == (3136, 12845056, 2, 3)
    crop = image_settings("llava", {"size": 336, "crop_size": 334, "feature_extractor_type": "CLIPFeatureExtractor"})
    assert isinstance(crop, CropSettings)
    assert (crop.shortest_edge, crop.crop_height, crop.crop_width) == (336, 334, 334)
    smol = video_settings(
        "smolvlm", {"video_sampling": {"fps": 3, "max_frames": 5, "video_size": {"longest_edge": 512}}}
    )
    assert (smol.fps, smol.num_frames, smol.frames.longest_edge, smol.frames.split) == (3.0, 5, 512, False)


@pytest.mark.parametrize(
    ("family", "config", "word"),
    [
        ("llava", {"image_processor_type": "NewImageProcessor"}, "NewImageProcessor"),
        ("internvl", {"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
        ("llava", {"do_center_crop": False}, "fixed image size"),
        ("llava", {"do_resize": False}, "do_resize"),
        ("llava", {"image_mean": [0.5]}, "image_mean"),
        ("smolvlm", {"size": {"height": 3}}, "longest_edge"),
    ],
)
def test_unsupported_settings_are_refused(family, config, word):
    with pytest.raises(InputError, match=word):
        image_settings(family, config)


def test_missing_files_and_tokens(tmp_path):
    tiny_pair("llava", tmp_path)
    folder = tmp_path / "model"
    edit(folder / "tokenizer_config.json", image_token="<picture>")
    with pytest.raises(InputError, match="<picture>"):
        write_processor(folder, tmp_path / "out")
    (folder / "processor_config.json").unlink()
    with pytest.raises(InputError, match="preprocessor_config"):
        write_processor(folder, tmp_path / "out")
    edit(folder / "config.json", model_type="mamba")
    with pytest.raises(InputError, match="mamba"):
        write_processor(folder, tmp_path / "out")
    edit(folder / "config.json", model_type="linmu_llama")
    write_processor(folder, tmp_path / "out")
    assert read_settings(tmp_path / "out" / "processor.json").family == "llama"
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="config.json"):
        write_processor(folder, tmp_path / "out")


def test_end_tokens_and_bos_flags(tmp_path):
    tiny_pair("llama", tmp_path)
    folder, out = tmp_path / "model", tmp_path / "out"
    edit(folder / "tokenizer_config.json", add_bos_token=True, add_eos_token=True)
    edit(folder / "generation_config.json", eos_token_id=[2, 4])
    write_processor(folder, out)
    made = Processor.from_folder(out)
    assert made.eos_token_ids == (2, 4)
    ids = made.encode("hi", raw=True).input_ids.tolist()
    assert (ids[0], ids[-1], len(ids)) == (1, 2, 4)
    assert made.encode("hi").input_ids[0] != 1
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=None)
    write_processor(folder, out)
    assert Processor.from_folder(out).eos_token_ids == (2,)


def test_bos_is_never_doubled(tmp_path):
    tiny_pair("llava", tmp_path)
    folder, out = tmp_path / "model", tmp_path / "out"
    edit(folder / "tokenizer_config.json", add_bos_token=True)
    write_processor(folder, out)
    assert Processor.from_folder(out).encode("hi").input_ids[:2].tolist()[0] == 1
    source = (out / "chat_template.jinja").read_text()
    (out / "chat_template.jinja").write_text("{{ bos_token }}" + source)
    ids = Processor.from_folder(out).encode("hi").input_ids.tolist()
    assert ids[0] == 1 and ids.count(1) == 1


def test_copied_tokenizer_is_a_plain_file(tmp_path):
    theirs, _ = tiny_pair("smolvlm", tmp_path)
    core = Tokenizer.from_file(str(tmp_path / "bundle" / "tokenizer" / "tokenizer.json"))
    assert core.get_vocab() == theirs.tokenizer.get_vocab()


def test_imports_nothing_of_the_workstation():
    code = (
        "import sys; import linmu.processing, linmu.processing.convert, linmu.processing.video; "
        "print([m for m in ('torch', 'transformers', 'onnx', 'onnxruntime', 'av') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_tokens_that_the_model_has_no_embedding_for(tmp_path):
    """The chat template's own tokens are refused by what reads a folder first; a user's when a prompt holds them."""
    _, ours = tiny_pair("llama", tmp_path)
    folder = tmp_path / "model"
    size = ours.tokenizer.get_vocab_size()
    data = json.loads((folder / "tokenizer.json").read_text())
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    data["added_tokens"] += [
        {"id": size, "content": "<late>", "special": False, **token},
        {"id": size + 1, "content": "<pad2>", "special": True, **token},
    ]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert vocabulary_of(folder) == size
    write_processor(folder, tmp_path / "again")  # tokens that no prompt need have
    late = Processor.from_folder(tmp_path / "again", size)
    assert (late.encode("<pad2>").input_ids < size).all()
    with pytest.raises(InputError, match=f"'<late>' .id {size}"):
        late.encode("a <late>")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("<|im_start|>", "<pad2>"))
    with pytest.raises(InputError, match=f"no embedding for; got '<pad2>', id {size + 1}"):
        write_processor(folder, tmp_path / "other")
