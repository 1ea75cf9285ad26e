"""What float16 states change, as a calibration measures it, against students that really round one layer's state."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from linmu.calibration import rounded_state
from linmu.calibration.error_curve import OCTAVES, checked_curve, empty_curve, octave, relative_errors
from linmu.calibration.rounded_state import measure_states, text_stream
from linmu.calibration.samples import CalibrationSample
from linmu.model.folders import load_student
from linmu.processing import ModelInputs
from linmu.reference.eager import StudentRunner
from linmu.reference.student_manifest import student_manifest
from linmu.runtimes.prompt import prompt_pieces
from linmu.step.pack import decoder_form
from linmu.verification.players import RunnerPlayer
from tests.folders import student_folder

TOKENS = tuple(range(3, 14))  # 11 steps: the last one reads a state that was rounded ten times
ROWS = {1: [1], 2: [2, 3], 4: [4, 5, 6, 7], 8: [8, 9, 10]}


class Place:
    def __init__(self, family: str, root):
        folder = student_folder(family, root)
        self.model = load_student(folder)
        self.form = decoder_form(self.model)
        self.manifest = student_manifest(folder, self.model, self.form)

    def play(self, runner: StudentRunner, tokens=TOKENS) -> np.ndarray:
        player = RunnerPlayer(runner, self.manifest)
        return np.stack([player.step(token).copy() for token in tokens])


@pytest.fixture(scope="module", params=["qwen3_vl", "llama"])
def place(request, tmp_path_factory) -> Place:
    return Place(request.param, tmp_path_factory.mktemp(request.param))


def outputs(place: Place, layer: int, rounded: bool) -> np.ndarray:
    """What the output projection of a layer reads, decode step by step; with `rounded`, that layer's state alone is."""
    runner, scope, seen = StudentRunner(place.model), [""], []
    enter, multiply = runner.ops.enter, runner.ops.multiply

    def write_state(state, form):
        if rounded and scope[0] == f"layers.{layer}.":
            state = torch.from_numpy(state.numpy().astype(np.float16).astype(np.float32))
        return state

    def watch(x, weight):
        if weight == f"layers.{layer}.out_proj":
            seen.append(x.numpy().ravel().copy())
        return multiply(x, weight)

    runner.ops.enter = lambda name: scope.__setitem__(0, name) or enter(name)
    runner.ops.write_state, runner.ops.multiply = write_state, watch
    player = RunnerPlayer(runner, place.manifest)
    for token in TOKENS:
        player.step(token)
    return np.stack(seen).astype(np.float64)


@pytest.mark.parametrize("piece", [2048, 3])
def test_the_errors_are_those_of_decode_steps_that_round_one_layers_state(place: Place, piece, monkeypatch) -> None:
    """Read as a prompt in one piece or in four, against real steps of each layer with and without rounding."""
    monkeypatch.setattr(rounded_state, "prompt_pieces", partial(prompt_pieces, max_tokens=piece))
    curves = measure_states(place.model, place.manifest, np.array(TOKENS))
    assert set(curves) == {f"layers.{i}.recurrent" for i in range(place.form.layers)}
    for i in range(place.form.layers):
        exact, moved = outputs(place, i, False), outputs(place, i, True)
        found = relative_errors(curves[f"layers.{i}.recurrent"])
        assert list(found) == list(ROWS)
        for first, rows in ROWS.items():
            wanted = np.linalg.norm(moved[rows] - exact[rows]) / np.linalg.norm(exact[rows])
            assert wanted > 1e-5
            assert found[first] == pytest.approx(wanted, rel=0.05), (i, first)


def test_a_state_that_was_never_read_says_nothing(place: Place) -> None:
    assert measure_states(place.model, place.manifest, np.zeros(0, np.int64)) == {}
    curves = measure_states(place.model, place.manifest, np.array(TOKENS[:1]))
    assert [relative_errors(curve) for curve in curves.values()] == [{}] * place.form.layers


class Source:
    """Three samples, the second of them a picture's (id 9) alone."""

    def __init__(self, *texts: tuple[list[int], tuple[int, ...]]):
        self.texts, self.taken = texts, 0

    def read(self, start: int):
        for ids, answer in self.texts[start:]:
            self.taken += 1
            yield CalibrationSample("", ModelInputs(np.array(ids, np.int64), ""), answer)


def test_the_stream_is_the_datas_text_over_and_over() -> None:
    texts = ([4, 9, 9, 5], (6,)), ([9, 9], ()), ([7], (8, 2))
    assert text_stream(Source(*texts), (9,), 8).tolist() == [4, 5, 6, 7, 8, 2, 4, 5]
    source = Source(*texts)
    assert text_stream(source, (9,), 3).tolist() == [4, 5, 6] and source.taken == 1  # no picture is read in vain
    assert text_stream(Source(*texts), (9,), 0).tolist() == []
    assert text_stream(Source(([9, 9], ())), (9,), 5).tolist() == []


@given(st.integers(1, 1 << 40))
def test_an_octave_holds_its_roundings(count: int) -> None:
    row = octave(count)
    assert (1 << row) <= count and (count < 2 << row or row == OCTAVES - 1)


def test_curves_that_are_none() -> None:
    curve = empty_curve()
    curve[3] = 0.09, 1.0
    assert relative_errors(checked_curve(curve)) == {8: pytest.approx(0.3)}
    for bad in (curve[:5], curve[:, :1], -curve, np.where(curve > 0.5, np.nan, curve)):
        with pytest.raises(ValueError, match="error curve"):
            checked_curve(bad)
