"""Text windows left out in training: which samples, that such samples have none, and what validation says of it."""

from __future__ import annotations

import pytest
import torch

from linmu.config import MMateConfig
from linmu.conversion.convert import convert
from linmu.distill import run as run_module
from linmu.distill.logs import read_csv
from linmu.distill.recipe import Stage, load_recipe
from linmu.distill.run import distill
from linmu.distill.window_dropout import left_out, set_window_off
from linmu.errors import InputError
from linmu.formats.data_folder import write_data_folder
from tests.distill.support import SHORT, items
from tests.folders import student_folder
from tests.tiny import tiny_inputs, tiny_model

STAGES = ("flex", "windows", "hidden", "answers")
STAGE = Stage(1, "flex", 10, {"flex_new": 1e-3}, {"layer": 1.0}, window_dropout=0.8)


def test_the_share_falls_to_none_and_a_sample_keeps_its_lot():
    names = [str(number) for number in range(2000)]
    shares = [left_out(STAGE, step, names, 3).float().mean().item() for step in range(10)]
    for step, share in enumerate(shares):
        assert share == pytest.approx(0.8 * (1 - step / 10), abs=0.05)
    one, two = left_out(STAGE, 4, names, 3), left_out(STAGE, 4, names[1000:], 3)
    assert torch.equal(one[1000:], two) and not torch.equal(one, left_out(STAGE, 4, names, 4))
    assert left_out(Stage(1, "flex", 10, {"flex_new": 1e-3}, {"layer": 1.0}), 0, names, 3) is None


@pytest.mark.parametrize("family", ["llama", "qwen3_vl"])
def test_a_prompt_without_window_is_flex_ma_alone_on_text(family):
    teacher, tokenizer = tiny_model(family)
    inputs = tiny_inputs(family, teacher, tokenizer, "text")
    student = convert(teacher, MMateConfig(text_window=3, text_sinks=1), inputs)
    inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
    with torch.inference_mode():
        before = student(**inputs).logits
        set_window_off(student, torch.tensor([False, True]))
        mixed = student(**inputs).logits
        set_window_off(student, None)
        for layer in student.get_decoder().layers:
            layer.self_attn.mmate = MMateConfig(local_swin=False)
            layer.self_attn.swin = None
        alone = student(**inputs).logits
    torch.testing.assert_close(mixed[0], before[0])
    torch.testing.assert_close(mixed[1], alone[1])
    assert (before[1] - alone[1]).abs().max() > 1e-3


def test_a_share_beyond_one_is_refused():
    with pytest.raises(InputError, match="window_dropout"):
        load_recipe("small", {"flex.window_dropout": "1.5"})


def test_a_run_says_what_the_student_is_without_its_window(tmp_path):
    student_folder("llama", tmp_path, text_window=4, text_sinks=1)
    for name, count, first in (("data", 8, 0), ("held", 3, 100)):
        write_data_folder(tmp_path / name, items("llama", count, first))
    settings = {f"{name}.window_dropout": "0.9" for name in ("flex", "answers")}
    recipe = load_recipe("small", {**SHORT, **settings, **{f"{name}.steps": "2" for name in STAGES}})
    said: list[str] = []
    report = distill(
        tmp_path / "student",
        tmp_path / "teacher",
        tmp_path / "data",
        tmp_path / "out",
        recipe=recipe,
        validation=tmp_path / "held",
        say=said.append,
    )
    rows = read_csv(tmp_path / "out" / "training" / "4-answers" / "validation.csv")
    last = report.stages[-1].distance
    assert rows[-1]["kl_off"] == pytest.approx(last.kl_off) and 0 <= last.top1_off <= 1
    assert all(row["kl_off"] != row["kl"] for row in rows)
    assert any("without text window KL" in line for line in said)


def test_a_stage_hands_back_a_student_with_its_window(tmp_path, monkeypatch):
    """Also where no validation comes after the last batch."""
    student_folder("llama", tmp_path, text_window=4, text_sinks=1)
    write_data_folder(tmp_path / "data", items("llama", 8))
    handed_back: list = []
    original = run_module.run_stage

    def spied(*arguments, **options):
        handed_back.append(original(*arguments, **options))
        return handed_back[-1]

    monkeypatch.setattr(run_module, "run_stage", spied)
    recipe = load_recipe("small", {**SHORT, "flex.window_dropout": "1.0", "flex.steps": "2"})
    folders = [tmp_path / name for name in ("student", "teacher", "data", "out")]
    distill(*folders, recipe=recipe, stages=[1], say=lambda _: None)
    assert handed_back
    for _, student in handed_back:
        assert all(layer.self_attn.window_off is None for layer in student.get_decoder().layers)
