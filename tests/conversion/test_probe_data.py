"""A user's own probe: which samples are taken, what is refused before anything is written, and what the report says."""

from __future__ import annotations

import json

import pytest
import torch

from linmu.cli import main
from linmu.config import MMateConfig
from linmu.conversion import probe_data
from linmu.conversion.convert import convert
from linmu.conversion.folder import convert_folder
from linmu.conversion.probe_data import data_probes, open_probe
from linmu.errors import InputError
from linmu.families import get_family
from linmu.formats.data_folder import DataFolder, write_data_folder
from linmu.layout import PromptRules
from linmu.model.folders import load_student
from linmu.model.modeling import teacher_config
from linmu.processing.encode import encode_sample, model_processor
from tests.distill.samples import VIDEO, family_data, family_folder, family_items
from tests.evaluation.models import small_videos
from tests.folders import teacher_folder
from tests.model.students import SMALL
from tests.tiny import VISION_NAMES, tiny_image, tiny_model

MMATE = MMateConfig(**SMALL)


def rules_of(family: str) -> PromptRules | None:
    rules = PromptRules.from_config(teacher_config(tiny_model(family)[0].config))
    return None if rules.facts.text_only else rules


def texts(root, count: int, words: int = 1, **more) -> DataFolder:
    """A folder of `count` samples of plain text, each of its own length."""
    lines = [({"id": f"{n}", "prompt": "ab " * words + "x" * n, "answer": "", **more}, {}) for n in range(count)]
    write_data_folder(root / "texts", lines)
    return DataFolder.open(root / "texts")


@pytest.mark.parametrize("family", [*VISION_NAMES, "llama"])
def test_every_sample_of_a_small_folder_is_a_prompt_that_the_teacher_takes(family, tmp_path_factory):
    processor, data = family_data(family, tmp_path_factory)
    rules = rules_of(family)
    found = data_probes(data, processor, rules)
    assert found.used == found.samples == len(data)
    wanted = sorted(len(encode_sample(sample, processor).inputs.input_ids) for sample in data.samples)
    assert sorted(prompt["input_ids"].shape[1] for prompt in found.prompts) == wanted
    assert found.tokens == sum(wanted)
    pictured = [any(name.startswith("pixel_values") for name in prompt) for prompt in found.prompts]
    assert pictured == sorted(pictured, reverse=True) and any(pictured) == (rules is not None)
    model, _ = tiny_model(family)
    for prompt in found.prompts:
        with torch.inference_mode():
            logits = model(**{name: value for name, value in prompt.items() if name != "linmu_media"}).logits
        assert logits.shape[:2] == prompt["input_ids"].shape and logits.isfinite().all()


def test_of_many_samples_sixteen_are_taken_evenly(tmp_path, tmp_path_factory):
    processor, _ = family_data("llama", tmp_path_factory)
    found = data_probes(texts(tmp_path, 31), processor, None)
    lengths = [prompt["input_ids"].shape[1] for prompt in found.prompts]
    assert found.used == 16 and found.samples == 31
    assert {later - earlier for earlier, later in zip(lengths, lengths[1:], strict=False)} == {2}


def test_a_picture_is_among_them_wherever_it_stands(tmp_path, tmp_path_factory):
    processor, _ = family_data("llava", tmp_path_factory)
    lines = [({"prompt": f"text {n}", "answer": "yes"}, {}) for n in range(40)]
    lines.insert(23, ({"images": ["a.png"], "prompt": "What?"}, {"a.png": tiny_image()}))  # and nobody answers it
    write_data_folder(tmp_path / "data", lines)
    data = open_probe(tmp_path / "data", get_family("llava"))
    found = data_probes(data, processor, rules_of("llava"))
    assert found.used == 16 and ["pixel_values" in prompt for prompt in found.prompts] == [True] + [False] * 15


def test_tokens_are_bounded_in_all(tmp_path, tmp_path_factory, monkeypatch):
    processor, _ = family_data("llama", tmp_path_factory)
    data = texts(tmp_path, 9, words=11)
    lengths = [len(encode_sample(sample, processor).inputs.input_ids) for sample in data.samples]
    monkeypatch.setattr(probe_data, "TOKENS", lengths[0] + lengths[4] + lengths[8])
    found = data_probes(data, processor, None)
    assert [prompt["input_ids"].shape[1] for prompt in found.prompts] == [lengths[0], lengths[4], lengths[8]]
    monkeypatch.setattr(probe_data, "TOKENS", lengths[2])  # longer ones are left out first
    assert data_probes(data, processor, None).tokens == lengths[0]
    monkeypatch.setattr(probe_data, "TOKENS", lengths[0] - 1)
    with pytest.raises(InputError, match=f"no sample of the probe .* got {lengths[0]} tokens or more in the 9"):
        data_probes(data, processor, None)


def test_a_picture_that_is_too_long_is_no_picture(tmp_path_factory, monkeypatch):
    processor, data = family_data("llava", tmp_path_factory)
    pictured = [encode_sample(sample, processor).tokens for sample in data.samples if not sample.text_only]
    monkeypatch.setattr(probe_data, "TOKENS", min(pictured) - 1)
    with pytest.raises(InputError, match=f"no sample with pictures of the probe .* got {min(pictured)} tokens or more"):
        data_probes(data, processor, rules_of("llava"))


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm", "llama"])
def test_a_folder_is_converted_on_it(family, tmp_path):
    teacher = teacher_folder(family, tmp_path / "teacher")
    small_videos(family, teacher)
    family_folder(family, tmp_path)
    calls: list[tuple[int, int]] = []
    report = convert_folder(
        teacher,
        tmp_path / "student",
        mmate=MMATE,
        probe=tmp_path / "data",
        progress=lambda *step: calls.append(step),
    )
    data = DataFolder.open(tmp_path / "data")
    found = data_probes(data, model_processor(teacher), rules_of(family))
    assert len(calls) == 2 * len(data) and report.probe_tokens == found.tokens
    wanted = convert(tiny_model(family)[0], MMATE, found.prompts)
    assert report.layers == wanted.conversion_report.layers
    state = load_student(tmp_path / "student").state_dict()
    assert all(torch.equal(state[name], value) for name, value in wanted.state_dict().items())
    count = len(data)
    assert report.notes == (f"measured on {count} of {count} samples of {tmp_path / 'data'}, {found.tokens} tokens",)
    kept = json.loads((tmp_path / "student" / "conversion.json").read_text())
    assert kept["notes"] == [f"measured on {count} of {count} samples of data, {found.tokens} tokens"]


def broken_probe(root, family: str, damage: str):
    """A data folder that a conversion refuses."""
    folder = root / "probe"
    if damage == "missing":
        return folder
    items = family_items(family)
    if damage == "text":
        items = [item for item in items if not item[1]]
    write_data_folder(folder, items)
    if damage == "line":
        with (folder / "data.jsonl").open("a") as lines:
            lines.write('{"prompt": 3}\n')
    if damage == "cut":  # the header is right, which is all that is looked at first
        (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:200])
    return folder


@pytest.mark.parametrize(
    ("family", "damage", "message"),
    [
        ("llava", "missing", "not a data folder"),
        ("llava", "line", 'data.jsonl, line 5: "prompt"; got 3; expected a text'),
        ("llava", "cut", "picture"),
        ("llava", "text", "has no picture; got 2 samples of text alone; expected samples with pictures or videos"),
    ],
)
def test_a_wrong_probe_leaves_nothing(family, damage, message, tmp_path, monkeypatch, capsys):
    assert family not in VIDEO
    teacher, probe = teacher_folder(family, tmp_path / "teacher"), broken_probe(tmp_path, family, damage)
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr("linmu.conversion.folder.load_teacher", lambda *_: pytest.fail("loaded"))
    capsys.readouterr()  # what saving the teacher printed
    code = main(["convert", str(teacher), "-o", str(tmp_path / "made" / "student"), "--probe", str(probe), "--json"])
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "" and message in captured.err.replace("\n", " ")
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_pictures_for_a_model_without_a_tower_are_refused(tmp_path):
    teacher = teacher_folder("llama", tmp_path / "teacher")
    probe = broken_probe(tmp_path, "llava", "none")
    with pytest.raises(InputError, match=r"data.jsonl:2 .*'one'"):
        convert_folder(teacher, tmp_path / "student", probe=probe)
    assert not (tmp_path / "student").exists()


def test_a_student_does_not_go_into_its_probe(tmp_path):
    teacher = teacher_folder("llama", tmp_path / "teacher")
    family_folder("llama", tmp_path)
    with pytest.raises(InputError, match="cannot write to .* neither in the other"):
        convert_folder(teacher, tmp_path / "data" / "student", probe=tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["data.jsonl"]


def test_the_command_says_what_it_measured_on(tmp_path, capsys):
    teacher = teacher_folder("llama", tmp_path / "teacher")
    texts(tmp_path, 20)
    arguments = ["convert", str(teacher), "-o", str(tmp_path / "student"), "--probe", str(tmp_path / "texts"), "--json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "measured on 16 of 20 samples of" in captured.err
    report = json.loads(captured.out)["report"]
    assert report["notes"][0].startswith("measured on 16 of 20") and report["probe_tokens"] > 100
