"""`linmu watch` as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from linmu.cli import main
from linmu.commands.watch import says
from tests.clips import write_clip
from tests.paths import ROOT
from tests.tiny import tiny_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Twelve seconds, a frame a second."""
    return write_clip(tmp_path_factory.mktemp("clip") / "c.mp4", list(tiny_video(1, 12, (64, 48))), rate=1)


def lines(capsys, bundle, clip, *arguments) -> list[dict]:
    assert main(["watch", str(bundle), str(clip), "--threads", "1", *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_for_every_answer(demo_bundle, clip, capsys):
    told = lines(capsys, demo_bundle, clip, "-p", "What moves?", "--every", "5s", "--max-new-tokens", "4")
    assert [(line["time"], line["frames_read"]) for line in told] == [(5.0, 6), (10.0, 11), (11.0, 12)]
    assert all(isinstance(line["answer"], str) and line["alert"] is False for line in told)
    assert len({line["state_bytes"] for line in told}) == 1
    again = lines(capsys, demo_bundle, clip, "-p", "What moves?", "--max-new-tokens", "4", "--alert", told[0]["answer"])
    assert [line["answer"] for line in again] == [line["answer"] for line in told]
    assert again[0]["alert"] is True


def test_without_a_question_it_tells_what_it_read(demo_bundle, clip, capsys, tmp_path):
    state = tmp_path / "s.safetensors"
    told = lines(capsys, demo_bundle, clip, "--every", "1m", "--keep", "restart:4:1", "--save-state", str(state))
    assert [(line["time"], line["restarts"]) for line in told] == [(11.0, 3)] and "answer" not in told[0]
    assert main(["run", str(demo_bundle), "-p", "What moves?", "--load-state", str(state), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] > 0


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("--every", "soon"), "a time (--every)"),
        (("--keep", "all"), "what a stream forgets"),
        (("--alert", "yes"), "--alert"),
        (("--fps", "0"), "frames per second"),
        (("--save-state", "/gone/away/s"), "no such folder"),
    ],
)
def test_bad_options(arguments, expected, demo_bundle, clip, capsys):
    assert main(["watch", str(demo_bundle), str(clip), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and expected in captured.err and captured.err.count("\n") == 1


def test_a_damaged_file_saves_what_was_read(demo_bundle, tmp_path, capsys):
    whole = write_clip(tmp_path / "c.mkv", list(tiny_video(1, 60, (64, 48))), rate=1).read_bytes()
    (tmp_path / "c.mkv").write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    state = tmp_path / "s.safetensors"
    code = main(["watch", str(demo_bundle), str(tmp_path / "c.mkv"), "--save-state", str(state)])
    captured = capsys.readouterr()
    assert captured.out and state.exists()
    assert code in (0, 2)  # FFmpeg takes zeros at the end of this container for its end, or not


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_cleanly_and_saves_the_state(number, demo_bundle, clip, tmp_path):
    state = tmp_path / "s.safetensors"
    command = [sys.executable, "-m", "linmu", "watch", str(demo_bundle), str(clip), "--every", "1s", "--speed", "2"]
    process = subprocess.Popen(
        [*command, "--save-state", str(state), "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert json.loads(process.stdout.readline())["frames_read"] >= 1
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped after" in errors and "Traceback" not in errors
    assert state.exists()


def test_alerts_are_whole_words():
    assert says("Yes, a man.", "yes") and says("I see: YES", "yes") and says("no one", "no one")
    assert not says("yesterday", "yes") and not says("eyes", "yes")
