"""The models that ship with linmu: whole, small, right about test questions, and the default of `linmu export`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from examples.questions import teacher_folder
from examples.questions.generate import TASKS, lines, samples
from linmu.cli import app
from linmu.demo import student_folder
from linmu.formats.data_folder import write_data_folder
from linmu.tools.evaluate import evaluate

FOLDERS = {"student": student_folder(), "teacher": teacher_folder()}
QUESTIONS = 4 * len(TASKS)
LEAST_RIGHT = 0.85


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A data folder of test content, with a seed that no measurement used."""
    folder = tmp_path_factory.mktemp("shipped") / "questions"
    write_data_folder(folder, lines(samples("test", 31, QUESTIONS)))
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_weights_are_small_finite_halves(name):
    path = FOLDERS[name] / "model.safetensors"
    assert path.stat().st_size <= 12_000_000
    for key, weight in load_file(path).items():
        assert weight.dtype == np.float16 and np.isfinite(weight).all(), key


@pytest.mark.parametrize("name", FOLDERS)
def test_the_card_has_every_task(name):
    card = (FOLDERS[name] / "README.md").read_text()
    assert all(f"| {task} | " in card for task in (*TASKS, "all"))
    assert "Licence: Apache-2.0" in card


@pytest.mark.slow
def test_the_default_student_as_a_bundle_says_what_it_says_in_torch(questions, tmp_path):
    bundle = tmp_path / "bundle"
    result = CliRunner().invoke(app, ["export", "--target", "onnx", "-o", str(bundle)])
    assert result.exit_code == 0, result.output
    said = {}
    for name, model in {"torch": student_folder(), "bundle": bundle, "teacher": teacher_folder()}.items():
        found = evaluate(model, questions, predictions=tmp_path / f"{name}.jsonl")
        assert found.micro.accuracy.value >= LEAST_RIGHT, name
        _, *found_lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()  # the first one is a header
        said[name] = {one["id"]: one["text"] for one in map(json.loads, found_lines)}
    assert said["torch"] == said["bundle"]
