"""`linmu run` as a user types it: conversations over state files, stops, terminals that are not UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from linmu.cli import main
from tests.paths import ROOT


@pytest.fixture
def bundle(bundle_of):
    return bundle_of("llama")


def answer(capsys, bundle, *arguments):
    code = main(["run", str(bundle), *arguments, "--threads", "1", "--json"])
    captured = capsys.readouterr()
    return json.loads(captured.out) if code == 0 else (code, captured.err)


def run(bundle, *arguments, **environment):
    command = [sys.executable, "-m", "linmu", "run", str(bundle), "--threads", "1", *arguments]
    return subprocess.run(
        command, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}
    )


def test_zero_tokens_read_the_prompt_and_a_state_goes_on(bundle, capsys, tmp_path):
    state = str(tmp_path / "state")
    options = ("--system", "Be brief.", "--max-new-tokens", "0", "--save-state", state)
    first = answer(capsys, bundle, "-p", "one?", *options)
    assert first["text"] == "" and first["token_ids"] == [] and first["finish_reason"] == "length"
    second = answer(capsys, bundle, "-p", "two?", "--load-state", state, "--max-new-tokens", "1")
    ids = len("<>\n<>user\ntwo?<>\n<>assistant\n".replace("<>", "."))  # a token a byte: the end of turn, then the rest
    assert second["prompt_tokens"] == ids and second["notice"] is None
    code, message = answer(capsys, bundle, "-p", "three?", "--load-state", state, "--system", "Be long.")
    assert code == 2 and "another system prompt" in message
    code, message = answer(capsys, bundle, "-p", "  ", "--load-state", state)
    assert code == 2 and "empty" in message
    assert answer(capsys, bundle, "-p", "x", "--max-new-tokens", "-1")[0] == 2


def test_control_tokens_of_a_prompt_are_text_unless_asked_for(bundle, capsys):
    plain = answer(capsys, bundle, "-p", "<|im_end|>", "--max-new-tokens", "0")
    parsed = answer(capsys, bundle, "-p", "<|im_end|>", "--max-new-tokens", "0", "--parse-special")
    assert plain["prompt_tokens"] - parsed["prompt_tokens"] == len("<|im_end|>") - 1


def test_a_stop_string_ends_the_answer(bundle, capsys):
    whole = answer(capsys, bundle, "-p", "x", "--max-new-tokens", "24", "--temperature", "2", "--seed", "5")
    stop = whole["text"][3:5]
    cut = answer(
        capsys, bundle, "-p", "x", "--max-new-tokens", "24", "--temperature", "2", "--seed", "5", "--stop", stop
    )
    assert stop not in cut["text"] and whole["text"].startswith(cut["text"]) and cut["finish_reason"] == "stop"


@pytest.mark.parametrize("encoding", ("ascii", "latin-1"))
def test_a_terminal_that_lacks_a_character_is_no_error(encoding, bundle):
    """Greedy tiny models say anything: what the terminal cannot show is written as an escape; JSON stays JSON."""
    options = ("-p", "é 世界", "--max-new-tokens", "24", "--temperature", "2", "--seed", "3")
    done = run(bundle, *options, "--json", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    text = json.loads(done.stdout.decode(encoding))["text"]
    assert not text.isascii()
    shown = run(bundle, *options, PYTHONIOENCODING=encoding)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.decode(encoding) == text.encode(encoding, "backslashreplace").decode(encoding) + "\n"


def test_an_undecodable_argument_is_one_line(bundle):
    for prompt in (("-p", b"caf\xe9"), ("-p", "x", "--system", b"\xff\xfe")):
        done = run(bundle, *prompt)
        lines = done.stderr.decode().strip().splitlines()
        assert done.returncode == 2 and len(lines) == 1 and "surrogate" in lines[0] and "UTF-8" in lines[0]
