"""Whole runs of a few steps: what they write, how they resume, how they refuse and stop."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

from linmu.cli import main
from linmu.distill import stage as stage_module
from linmu.distill.logs import read_csv
from linmu.distill.run import distill
from linmu.distill.signals import LiveTeacher
from linmu.errors import CheckFailed, InputError
from linmu.formats.data_folder import write_data_folder
from linmu.model.folders import load_student
from tests.distill.support import items, places, short_recipe, weights
from tests.folders import student_folder

STAGES = ("1-flex", "2-windows", "3-hidden", "4-answers")


def go(root, out, recipe=None, **options):
    return distill(
        root / "student",
        root / "teacher",
        root / "data",
        out,
        recipe=recipe or short_recipe(),
        validation=root / "held",
        say=options.pop("say", lambda _: None),
        **options,
    )


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(places, folder of a whole run, its report, what it said)."""
    root, out, said = places("smolvlm", tmp_path_factory), tmp_path_factory.mktemp("out") / "trained", []
    return root, out, go(root, out, say=said.append), said


def test_a_run_writes_a_complete_student(finished):
    root, out, report, _ = finished
    source = {path.name for path in (root / "student").iterdir()}
    assert source <= {path.name for path in out.iterdir()}
    stages = [weights(root / "student"), *(weights(out / "training" / name / "student") for name in STAGES)]
    assert not changed(stages[-1], weights(out))
    assert [(s.number, s.name, s.steps) for s in report.stages] == [
        (1, "flex", 4),
        (2, "windows", 4),
        (2, "hidden", 4),
        (3, "answers", 4),
    ]
    assert json.loads((out / "distillation.json").read_text())["stages"][3]["distance"]["samples"] == 5
    assert load_student(out).mmate == load_student(root / "student").mmate


def test_every_stage_changes_its_groups_only(finished):
    root, out, _, _ = finished
    stages = [weights(root / "student"), *(weights(out / "training" / name / "student") for name in STAGES)]
    flex = ("scan_", "gate_f", "gate_b", "flex.")
    parts = {
        0: flex,
        1: (*flex, "swin.", "alpha.", "o_proj"),
        2: (*flex, "swin.", "alpha.", "o_proj"),
        3: (*flex, "swin.", "alpha.", "o_proj", "mlp."),
    }
    for number, allowed in parts.items():
        names = changed(stages[number], stages[number + 1])
        assert all("text_model.layers" in name and any(part in name for part in allowed) for name in names)
        assert all(any(part in name for name in names) for part in allowed), (number, allowed)


def test_logs_hold_every_interval_and_validation(finished):
    _, out, report, said = finished
    for name, parts in zip(STAGES, ({"layer"}, {"layer"}, {"hidden", "logits"}, {"hidden", "logits"}), strict=True):
        rows = read_csv(out / "training" / name / "training.csv")
        assert [row["step"] for row in rows] == [2, 4]
        assert parts | {"loss", "learning_rate", "grad_norm", "tokens", "tokens_per_s", "peak_mib"} <= rows[0].keys()
        assert [row["step"] for row in read_csv(out / "training" / name / "validation.csv")] == [0, 4]
        assert (out / "training" / name / "curves.png").stat().st_size > 1000
    rows = read_csv(out / "training" / "4-answers" / "training.csv")
    assert rows[0]["loss"] == pytest.approx(rows[0]["logits"] + 0.1 * rows[0]["hidden"], rel=1e-5)
    assert any(re.search(r"flex: step 4/4 [\d,]+ tokens loss [\d.]+ [\d,]+ tokens/s 0 s left$", line) for line in said)
    assert any(re.search(r"answers: step 2/4 [\d,]+ tokens KL [\d.]+ hidden [\d.]+ ", line) for line in said)
    first, last = read_csv(out / "training" / "4-answers" / "validation.csv")
    assert (first["trained_tokens"], last["trained_tokens"]) == (0, rows[-1]["tokens"])
    assert last["kl"] < 0.9 * first["kl"] and last["kl"] == pytest.approx(report.stages[3].distance.kl)


def test_a_finished_run_resumes_to_itself(finished):
    root, out, report, _ = finished
    before, said = weights(out), []
    again = go(root, out, resume=True, say=said.append)
    assert not changed(before, weights(out)) and again.stages == report.stages
    assert sum("done before" in line for line in said) == 4


@pytest.mark.slow
def test_stages_one_by_one_give_the_whole_run(finished, tmp_path):
    root, out, _, _ = finished
    for number in (1, 2, 3):
        go(root, tmp_path / "out", resume=True, stages=[number])
        assert (tmp_path / "out" / "config.json").is_file()
    assert not changed(weights(out), weights(tmp_path / "out"))


def test_a_stage_alone_starts_from_the_student_given(finished, tmp_path):
    root, out, _, _ = finished
    # passes of one sample: in those of text alone no window is used
    recipe = short_recipe(windows__train="{swin: 1e-3}", hidden__train="{swin: 1e-3}", micro_batch=1)
    go(root, tmp_path / "out", recipe, stages=[2])
    names = changed(weights(root / "student"), weights(tmp_path / "out"))
    assert names and all(".swin." in name for name in names)
    with pytest.raises(InputError, match="windows was begun from the student given"):
        go(root, tmp_path / "out", recipe, stages=[1, 2], resume=True)


def test_a_killed_run_goes_on_to_the_same_result(finished, tmp_path):
    """A crash in the middle of an interval; tests/distill/test_kill.py does it with SIGKILL, in every stage."""
    root, out, _, _ = finished
    recipe = short_recipe(steps=4, save_every=2)

    def crash(text):
        if "hidden: step 4" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(root, tmp_path / "out", recipe, say=crash)
    assert not (tmp_path / "out" / "config.json").exists()
    go(root, tmp_path / "out", recipe, resume=True)
    assert not changed(weights(out), weights(tmp_path / "out"))
    columns = ("step", "loss", "hidden", "logits", "tokens", "learning_rate")
    for name in STAGES:
        rows = [read_csv(folder / "training" / name / "training.csv") for folder in (out, tmp_path / "out")]
        assert [[row.get(c) for c in columns] for row in rows[0]] == [[row.get(c) for c in columns] for row in rows[1]]


def test_a_loss_that_is_no_number_stops_the_run(finished, tmp_path, monkeypatch, capsys):
    root, _, _, _ = finished
    real, poisoned = LiveTeacher.signals, "data.jsonl:7"

    def signals(self, batch, needs):
        found = real(self, batch, needs)
        if needs.layer and poisoned in batch["sample_ids"]:
            found.layer_out[1] = found.layer_out[1] / 0
        return found

    monkeypatch.setattr(LiveTeacher, "signals", signals)
    settings = ["batch_size=6", "micro_batch=2", "log_every=1", "save_every=1", "flex.steps=9"]
    arguments = [
        str(root / "student"),
        "--teacher",
        str(root / "teacher"),
        "--data",
        str(root / "data"),
        "-o",
        str(tmp_path / "out"),
        "--stage",
        "1",
        *(x for s in settings for x in ("--set", s)),
    ]
    assert main(["distill", *arguments]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "error: the loss is not finite in stage 1 (flex) at step" in line
    listed = line.split("samples of the batch: ")[1].split("; ")[0].split(", ")
    assert len(listed) == 2 and poisoned in listed  # the pass, not the whole step
    step = int(line.split("at step ")[1].split(";")[0])
    folder = tmp_path / "out" / "training" / "1-flex"
    kept = f"checkpoint-{step - 1}" if step > 1 else "none yet"
    assert kept in line and (step == 1 or (folder / kept / "trained.safetensors").is_file())
    assert not (folder / f"checkpoint-{step}").exists() and not (tmp_path / "out" / "config.json").exists()


def test_an_infinite_loss_stops_too(finished, tmp_path, monkeypatch):
    root, _, _, _ = finished
    real = stage_module.Objective.forward

    def forward(self, batch, signals, counts=None):
        parts = real(self, batch, signals, counts)
        return parts if counts is None else parts | {"loss": parts["loss"] + float("inf")}  # finite gradients

    monkeypatch.setattr(stage_module.Objective, "forward", forward)
    with pytest.raises(CheckFailed, match="at step 1"):
        go(root, tmp_path / "out", stages=[1])


def test_what_does_not_fit_is_refused(finished, tmp_path, tmp_path_factory):
    root, out, _, _ = finished
    with pytest.raises(InputError, match="not empty.*--resume"):
        go(root, out)
    for options, name in (
        ({"recipe": short_recipe(steps=3)}, "recipe.stages.answers.steps"),
        ({"seed": 5}, "seed"),
        ({"recipe": short_recipe(batch_size=5)}, "recipe.batch_size"),
    ):
        with pytest.raises(InputError, match=f"started with another {name}"):
            go(root, out, resume=True, **options)
    write_data_folder(tmp_path / "data", items("smolvlm", 7))
    with pytest.raises(InputError, match="started with another data"):
        distill(
            root / "student",
            root / "teacher",
            tmp_path / "data",
            out,
            recipe=short_recipe(),
            validation=root / "held",
            resume=True,
        )
    with pytest.raises(InputError, match="got 7; expected at least batch_size, 12.*batch_size=7"):
        distill(
            root / "student",
            root / "teacher",
            tmp_path / "data",
            tmp_path / "new",
            recipe=short_recipe(batch_size=12),
            say=lambda _: None,
        )
    with pytest.raises(InputError, match="no stage to run; got 7"):
        go(root, tmp_path / "none", stages=[7])
    with pytest.raises(InputError, match="too many tokens"):
        go(root, tmp_path / "long", short_recipe(max_tokens=20))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(InputError, match="holds no run to resume"):
        go(root, tmp_path / "mine", resume=True)


def test_a_run_killed_before_its_first_file_starts_anew(tmp_path):
    from linmu.distill.out_folder import OutFolder

    (tmp_path / "out" / "training").mkdir(parents=True)
    (tmp_path / "out" / "training" / ".run.json.1234.partial").touch()
    recipe = short_recipe()
    OutFolder(tmp_path / "out", recipe).begin({"seed": 1, "recipe": recipe.to_json()}, resume=False)
    assert json.loads((tmp_path / "out" / "training" / "run.json").read_text())["seed"] == 1


LOCKING = """
import sys
from linmu.distill.out_folder import OutFolder
with OutFolder(sys.argv[1], None).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_do_not_write_one_folder(tmp_path):
    from linmu.distill.out_folder import OutFolder

    out = OutFolder(tmp_path / "out", short_recipe())
    command, pipe = [sys.executable, "-c", LOCKING, str(tmp_path / "out")], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another run writes"), out.locked():
            pass
        other.kill()
    with out.locked():
        out.begin({"seed": 1, "recipe": out.recipe.to_json()}, resume=False)


@pytest.mark.slow
def test_other_ways_to_train(finished, tmp_path):
    """Checkpointing and passes change nothing but rounding; bf16, top-k and text alone run."""
    root, _, _, _ = finished
    say = lambda _: None  # noqa: E731
    recipes = {"plain": {}, "other": {"gradient_checkpointing": "true", "micro_batch": 2}}
    for name, settings in recipes.items():
        go(root, tmp_path / name, short_recipe(steps=2, answers__steps=4, **settings), stages=[3], say=say)
    plain, other = weights(tmp_path / "plain"), weights(tmp_path / "other")
    for name, expected in plain.items():
        torch.testing.assert_close(other[name], expected, rtol=0, atol=2e-4, msg=name)
    report = go(root, tmp_path / "bf16", short_recipe(steps=2, top_k=5), bf16=True, say=say)
    assert all(stage.last_loss > 0 for stage in report.stages)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_teacher_in_half_precision_teaches_in_bf16(dtype, tmp_path_factory, tmp_path):
    from linmu.formats.model_files import read_model_folder
    from linmu.model.folders import load_teacher

    root, half = places("smolvlm", tmp_path_factory), tmp_path / "half"
    shutil.copytree(root / "teacher", half)
    load_teacher(read_model_folder(root / "teacher")).to(dtype).save_pretrained(half)
    report = distill(
        root / "student",
        half,
        root / "data",
        tmp_path / "out",
        recipe=short_recipe(steps=2),
        stages=[1],
        bf16=True,
        say=lambda _: None,
    )
    assert report.stages[0].last_loss > 0


def test_text_models_train_on_all_tokens(tmp_path_factory, tmp_path):
    root = places("llama", tmp_path_factory)
    report = go(root, tmp_path / "out", short_recipe(steps=2, loss_on="all"))
    assert len(report.stages) == 4 and report.stages[3].distance.tokens > 50


def test_students_of_the_delta_rule_train_in_every_stage(tmp_path):
    student_folder("smolvlm", tmp_path, rule="gated_delta")
    for name, first in (("data", 0), ("held", 100)):
        write_data_folder(tmp_path / name, items("smolvlm", 6, first))
    report = go(tmp_path, tmp_path / "out", short_recipe(steps=2))
    assert len(report.stages) == 4 and report.stages[3].distance.tokens > 0
    before, after = weights(tmp_path / "student"), weights(tmp_path / "out")
    moved = [name for name in changed(before, after) if "beta_proj" in name]
    assert len(moved) == len([name for name in before if "beta_proj" in name]) > 0


def test_the_type_of_the_weights_is_kept(tmp_path_factory, tmp_path):
    root = places("qwen2", tmp_path_factory)
    half = tmp_path / "half"
    shutil.copytree(root / "student", half)
    load_student(root / "student", torch.bfloat16).save_pretrained(half, save_original_format=False)
    distill(
        half,
        root / "teacher",
        root / "data",
        tmp_path / "out",
        recipe=short_recipe(steps=2),
        stages=[1],
        say=lambda _: None,
    )
    assert {value.dtype for value in load_student(tmp_path / "out", "auto").state_dict().values()} == {torch.bfloat16}
    kept = load_student(tmp_path / "out" / "training" / "1-flex" / "student", "auto")
    assert {value.dtype for value in kept.state_dict().values()} == {torch.float32}


def test_the_command_line_says_what_is_wrong(finished, tmp_path, capsys):
    root, out, _, _ = finished
    base = [str(root / "student"), "--teacher", str(root / "teacher"), "--data", str(root / "data")]
    other = student_folder("qwen2", tmp_path)
    cases = [
        ([*base, "-o", str(root / "student" / "inside")], "neither in the other"),
        ([*base, "-o", str(tmp_path / "x"), "--recipe", "huge"], "huge"),
        ([*base, "-o", str(tmp_path / "x"), "--set", "flex.stairs=4"], "stairs"),
        ([*base, "-o", str(tmp_path / "x"), "--stage", "4"], "--stage"),
        ([*base, "-o", str(out)], "not empty"),
        ([str(other), *base[1:], "-o", str(tmp_path / "x")], "another family"),
        ([str(root / "teacher"), *base[1:], "-o", str(tmp_path / "x")], "is not a student"),
        ([*base[:-1], str(tmp_path / "nothing"), "-o", str(tmp_path / "x")], "not a data folder"),
    ]
    for arguments, words in cases:
        assert main(["distill", *arguments]) == 2
        found = capsys.readouterr().err
        assert words in found and found.count("error:") == 1 and "Traceback" not in found
    assert not (tmp_path / "x").exists()


def test_the_command_line_trains(finished, tmp_path, capsys):
    root, _, _, _ = finished
    settings = ["batch_size=6", "log_every=1", "save_every=0", "flex.steps=2"]
    arguments = [
        str(root / "student"),
        "--teacher",
        str(root / "teacher"),
        "--data",
        str(root / "data"),
        "-o",
        str(tmp_path / "out"),
        "--stage",
        "1",
        *(x for s in settings for x in ("--set", s)),
    ]
    assert main(["distill", *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in result["report"]["stages"]] == ["flex"] and result["report"]["samples"] == 20
