"""SIGKILL in every stage, and several processes: each in processes of their own, so slow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from linmu.distill.answers_file import read_answers
from linmu.distill.logs import read_csv
from linmu.formats.data_folder import write_data_folder
from tests.distill.support import items, places, weights
from tests.paths import ROOT

pytestmark = pytest.mark.slow
STAGES = ("1-flex", "2-windows", "3-hidden", "4-answers")
COLUMNS = ("step", "loss", "layer", "hidden", "logits", "learning_rate", "grad_norm", "tokens")
SETTINGS = (
    "batch_size=4",
    "log_every=1",
    "save_every=2",
    "validate_every=2",
    "flex.steps=4",
    "windows.steps=4",
    "hidden.steps=4",
    "answers.steps=4",
)


def command(root: Path, out: Path, *more: str) -> list[str]:
    """Arguments of `linmu distill`."""
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return [
        "distill",
        str(root / "student"),
        "--teacher",
        str(root / "teacher"),
        "--data",
        str(root / "data"),
        "-o",
        str(out),
        "--validation",
        str(root / "held"),
        *settings,
        *more,
    ]


def start(*arguments: str) -> subprocess.Popen:
    """Python with one thread; what it says comes line by line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def run(*arguments: str, kill_at: str | None = None, expect: str = "") -> int:
    """Exit code; with `kill_at`, SIGKILL once a line says so; `expect` must be said."""
    process, said = start(*arguments), []
    for line in process.stderr:
        said.append(line)
        if kill_at is not None and kill_at in line:
            process.send_signal(signal.SIGKILL)
            break
    code = process.wait()
    assert code in (0, -signal.SIGKILL) and expect in "".join(said), "".join(said)
    return code


def curves(out: Path) -> list:
    """All logged figures but times and memory."""
    rows = [row for name in STAGES for row in read_csv(out / "training" / name / "training.csv")]
    checks = [row for name in STAGES for row in read_csv(out / "training" / name / "validation.csv")]
    return [{name: row[name] for name in COLUMNS if name in row} for row in rows] + checks


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(places, folder of an uninterrupted run)."""
    root, out = places("smolvlm", tmp_path_factory), tmp_path_factory.mktemp("whole") / "out"
    assert run("-m", "linmu", *command(root, out)) == 0
    return root, out


def test_killed_in_every_stage_a_run_resumes_to_the_same_bits(whole, tmp_path):
    root, out = whole
    killed = tmp_path / "out"
    for place in ("flex: step 3/", "windows: step 1/", "hidden: step 2/", "answers: step 3/"):
        assert run("-m", "linmu", *command(root, killed, "--resume"), kill_at=place) == -signal.SIGKILL
        assert not (killed / "config.json").exists()
    assert run("-m", "linmu", *command(root, killed, "--resume")) == 0
    expected, found = weights(out), weights(killed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert curves(out) == curves(killed)


@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_two_processes_have_the_losses_of_one(whole, tmp_path, launcher):
    root, out = whole
    # accelerate wants mpirun for --cpu; told of several devices it starts as many processes, which find no device
    accelerate = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    options = ["--nproc_per_node", "2"] if "torch" in launcher else accelerate.split()
    both = tmp_path / "out"
    assert run("-m", launcher, *options, "-m", "linmu", *command(root, both), expect="2 processes") == 0
    expected, found = curves(out), curves(both)
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        assert b == pytest.approx(a, rel=2e-3, abs=1e-6)
    for name, value in weights(out).items():
        torch.testing.assert_close(weights_of(both)[name], value, rtol=0, atol=1e-3)


def weights_of(folder: Path, known: dict = {}) -> dict:  # noqa: B006
    """Read once."""
    return known.setdefault(folder, weights(folder))


def answering(root: Path, out: Path, *more: str) -> list[str]:
    """Arguments of one stage on prompts alone."""
    arguments = command(root, out, "--stage", "1", "--answers", "sampled", "--answer-tokens", "9", *more)
    arguments[arguments.index("--data") + 1] = str(root / "prompts")
    return arguments


def said(out: Path) -> dict:
    """The teacher's answers."""
    return read_answers(out / "training")


def test_killed_while_the_teacher_answers(tmp_path_factory, tmp_path):
    root, out, killed, both = places("llama", tmp_path_factory), *(tmp_path / name for name in "abc")
    write_data_folder(root / "prompts", [({"prompt": line["prompt"]}, {}) for line, _ in items("llama", 45)])
    assert run("-m", "linmu", *answering(root, out)) == 0
    assert run("-m", "linmu", *answering(root, killed), kill_at="teacher's answers: 16/45") == -signal.SIGKILL
    assert 16 <= len(said(killed)) < 45
    assert run("-m", "linmu", *answering(root, killed, "--resume"), expect="/29 samples") == 0
    assert said(killed) == said(out) and len(said(out)) == 45
    expected, found = weights(out), weights(killed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "linmu")
    assert run(*launcher, *answering(root, both), expect="2 processes") == 0
    assert said(both) == said(out) and (both / "training" / "answers-1.jsonl").is_file()
