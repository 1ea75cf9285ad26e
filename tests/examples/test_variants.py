"""What the drift and accuracy benchmarks compare is what a bundle of each state precision is held to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.drift import Course, compare, window
from benchmarks.variants import Sequences
from linmu.formats.precision import Precision
from linmu.formats.state_precision import STATE_PRECISIONS
from linmu.model.folders import load_student
from linmu.processing import ModelInputs
from linmu.reference.eager import StudentRunner
from linmu.reference.student_manifest import student_manifest
from linmu.step.pack import decoder_form
from linmu.verification.players import RunnerPlayer
from tests.folders import student_folder

PROMPTS = (np.arange(3, 12), np.arange(20, 25))
TOKENS = ((7, 9), (3, 3), (11, 2), (5, 8))


def test_grouped_rows_are_the_references_of_each_precision(tmp_path) -> None:
    folder = student_folder("qwen2", tmp_path, text_window=4)
    student = load_student(folder)
    manifest = student_manifest(folder, student, decoder_form(student))
    inputs = [ModelInputs(ids.astype(np.int64), "") for ids in PROMPTS]
    runner = StudentRunner(student)
    players = [RunnerPlayer(runner, manifest, one) for one in inputs]
    for player in players:
        player.start()
    sequences, groups = Sequences(runner), len(STATE_PRECISIONS)
    with torch.inference_mode():
        sequences.begin(players)
        found = [sequences.step(torch.tensor(tokens * groups)).numpy() for tokens in TOKENS]
    for group, precision in enumerate(STATE_PRECISIONS):
        reference = StudentRunner(student, precision=Precision(state=precision))
        for place, one in enumerate(inputs):
            player = RunnerPlayer(reference, manifest, one)
            player.start()
            for step, tokens in enumerate(TOKENS):
                wanted, row = player.step(tokens[place]), found[step][group * len(inputs) + place]
                assert np.abs(row - wanted).max() <= 1e-4 * wanted.std(), (precision, step)
    assert np.abs(found[-1][:2] - found[-1][2:]).max() > 0  # float16 is another function


@pytest.mark.parametrize(("moment", "steps"), [(1, [1]), (10, [10]), (100, list(range(91, 101)))])
def test_windows_end_at_their_moment(moment, steps) -> None:
    assert list(range(*window(moment))) == steps


def test_comparison_takes_the_worst_of_each_window() -> None:
    course = Course([], np.zeros((100, 1), np.int64), (1, 100))
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((len(course.kept()), 1, 13)).astype(np.float32)
    found = wanted.copy()
    found[4, 0] = np.roll(found[4, 0], 1)
    table = compare(course, wanted, found)
    assert table["1"] == {"kl_mean": 0, "kl_max": 0, "logit_max": 0, "logit_mean": 0, "same_token": 1}
    last = table["100"]
    assert last["same_token"] == 0.9 and last["kl_max"] == pytest.approx(10 * last["kl_mean"])
    gap = np.abs(found[4] - wanted[4]).max() / wanted[4].std()
    assert last["logit_max"] == pytest.approx(gap)
