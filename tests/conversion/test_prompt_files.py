"""A teacher without what prompts need, or with another model's processor, is refused before it is converted."""

from __future__ import annotations

import json

import pytest

from linmu.cli import main
from linmu.conversion.folder import convert_folder
from linmu.errors import InputError
from tests.folders import teacher_folder

PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def refused(teacher, message):
    with pytest.raises(InputError, match=message) as caught:
        convert_folder(teacher, teacher.parent / "student")
    assert "\n" not in str(caught.value) and "fix: " in str(caught.value)
    assert [path.name for path in teacher.parent.iterdir()] == [teacher.name]


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_no_tokenizer(family, tmp_path, capsys):
    teacher = teacher_folder(family, tmp_path / "teacher")
    (teacher / "tokenizer.json").unlink()
    refused(teacher, "teacher has no tokenizer; expected tokenizer.json, or a file it can be made from")
    capsys.readouterr()
    assert main(["convert", str(teacher), "-o", str(tmp_path / "student")]) == 2
    assert "has no tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen3_vl", "internvl"])
def test_no_processor(family, tmp_path):
    teacher = teacher_folder(family, tmp_path / "teacher")
    for name in PROCESSOR:
        (teacher / name).unlink(missing_ok=True)
    refused(teacher, "teacher has no image processor; expected processor_config.json or preprocessor_config.json")


def changed(content, name: str, value) -> int:
    """Set every setting of this name, however deep; returns how many there were."""
    if not isinstance(content, dict):
        return 0
    count = sum(changed(item, name, value) for key, item in content.items() if key != name)
    if name in content:
        content[name] = value
        count += 1
    return count


@pytest.mark.parametrize(
    ("family", "setting", "value", "message"),
    [
        ("smolvlm", "image_seq_len", 25, "tokens of a picture's tile; got 25; expected 16, the model's"),
        ("idefics3", "max_image_size", {"longest_edge": 64}, "pixels of a tile; got 64; expected 48"),
        ("internvl", "image_seq_length", 16, "tokens of a picture's tile; got 16; expected 9, the model's"),
        ("internvl", "size", {"height": 56, "width": 56}, "pixels of a tile; got 56 x 56"),
        ("llava", "patch_size", 7, "tokens of a picture's tile; got 36; expected 9, the model's"),
        ("llava", "crop_size", {"height": 56, "width": 56}, "tokens of a picture's tile; got 16; expected 9"),
        ("qwen2_5_vl", "patch_size", 16, "patch_size; got 16; expected 14, the model's patch_size"),
        ("qwen3_vl", "merge_size", 4, "merge_size; got 4; expected 2, the model's spatial_merge_size"),
        ("qwen3_vl", "temporal_patch_size", 1, "temporal_patch_size; got 1; expected 2"),
    ],
)
def test_pictures_of_another_length(family, setting, value, message, tmp_path):
    teacher = teacher_folder(family, tmp_path / "teacher")
    found = 0
    for name in PROCESSOR:
        if (teacher / name).is_file():
            content = json.loads((teacher / name).read_text())
            found += changed(content, setting, value)
            (teacher / name).write_text(json.dumps(content))
    assert found
    refused(teacher, message)


def test_a_tower_that_cannot_be_exported(tmp_path):
    teacher = teacher_folder("llava", tmp_path / "teacher")
    content = json.loads((teacher / "config.json").read_text())
    content["vision_config"] = {
        "model_type": "siglip_vision_model",
        "image_size": 42,
        "patch_size": 14,
        "hidden_size": 32,
        "num_attention_heads": 2,
    }
    content["vision_feature_select_strategy"] = "full"  # it has no class token
    (teacher / "config.json").write_text(json.dumps(content))
    refused(teacher, "vision tower of this LLaVA; got siglip_vision_model; expected clip_vision_model or dinov2")
