"""Rows of a batch against the same states stepped alone, while others join and leave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import linmu
from linmu.calibration.collect import calibrate
from linmu.runtimes.base import RunnerState
from linmu.runtimes.batch import TurnsBatch, new_batch
from linmu.runtimes.ort_batch import OrtBatch
from tests.exports import export_bundle
from tests.folders import student_folder
from tests.runtimes.sessions import gap, media

SHARED = {"text_window": 6, "text_sinks": 2, "text_window_projections": "shared"}
OWN = {"text_window": 5, "text_window_projections": "own"}
CASES = {
    "llama": ("llama", False, {}),
    "llama-window": ("llama", False, SHARED),
    "llama-plain": ("llama", True, SHARED),
    "smolvlm-window": ("smolvlm", False, OWN),
    "qwen3_vl-window": ("qwen3_vl", False, SHARED),
}
FAST = {"samples": 3, "decode_tokens": 3, "long_tokens": 4, "state_tokens": 5, "kept_rows": 40}
STEPS, CAPACITY = 200, 5


@dataclass
class Alone:
    """A conversation stepped by itself, and where its row's next step stands."""

    state: RunnerState
    position: int
    tokens: int


class Talks:
    """Conversations of one session, read one after the other."""

    def __init__(self, session, family: str):
        self.session, self.family, self.count = session, family, 0

    def begin(self) -> Alone:
        self.session.reset()
        pictures = media(self.family) if self.count % 3 == 0 else {}
        words = "what is here? " * (self.count % 4) + "and?" + "x" * self.count
        self.session.prefill(self.session.prepare(words, **pictures))
        self.count += 1
        state = self.session.runner.new_state()
        state.write(self.session.state.handle.read())
        return Alone(state, self.session.state.position, self.session.state.tokens)


def state_gap(actual: RunnerState, expected: RunnerState) -> float:
    found, wanted = actual.read(), expected.read()
    return max(float(np.abs(found[n] - wanted[n]).max() / (np.abs(wanted[n]).max() + 1e-6)) for n in wanted)


def greatest_gaps(session, family: str, batch, steps: int = STEPS) -> tuple[float, float]:
    """Of logits and of states over some steps, with rows that join and leave at random."""
    random, talks = np.random.default_rng(3), Talks(session, family)
    runner, rows, spare = session.runner, [], session.runner.new_state()
    logits_gap = states_gap = 0.0
    for _ in range(steps):
        if len(rows) < CAPACITY and (not rows or random.random() < 0.1):
            rows.append(talks.begin())
            assert batch.join(rows[-1].state) == len(rows) - 1
        if len(rows) > 1 and random.random() < 0.08:
            row = int(random.integers(len(rows)))
            batch.leave(row, spare)
            states_gap = max(states_gap, state_gap(spare, rows[row].state))
            rows[row] = rows[-1]
            rows.pop()
        tokens = random.integers(3, 250, len(rows)).tolist()
        found = batch.step(tokens, [row.position for row in rows], [row.tokens for row in rows])
        assert found.shape[0] == len(rows) == len(batch)
        for row, token, logits in zip(rows, tokens, found, strict=True):
            alone = runner.step(token, row.position, row.tokens, row.state)
            assert np.isfinite(logits).all() and alone.std() > 0
            logits_gap = max(logits_gap, gap(logits, alone))
            row.position, row.tokens = row.position + 1, row.tokens + 1
    while rows:
        batch.leave(len(rows) - 1, spare)
        states_gap = max(states_gap, state_gap(spare, rows.pop().state))
    assert talks.count > steps / 20 and len(batch) == 0
    return logits_gap, states_gap


@pytest.mark.parametrize("case", CASES)
def test_a_batch_is_its_rows_alone(case, bundle_of):
    family, plain, settings = CASES[case]
    with linmu.load(bundle_of(family, plain, **settings), "onnxruntime", threads=1) as session:
        batch = new_batch(session.runner, CAPACITY)
        assert isinstance(batch, OrtBatch)
        logits, states = greatest_gaps(session, family, batch)
        assert logits < 1e-4 and states < 1e-4


@pytest.mark.parametrize("preset", ("int4", "int8"))
def test_quantized_rows_are_their_rows_alone(preset, tmp_path):
    student = student_folder("llama", tmp_path, **SHARED)
    calibrate(student, tmp_path / "calib.safetensors", allow_random=True, **FAST)
    export_bundle(student, tmp_path / "bundle", preset=preset, calibration=tmp_path / "calib.safetensors")
    with linmu.load(tmp_path / "bundle", "onnxruntime", threads=1) as session:
        logits, states = greatest_gaps(session, "llama", new_batch(session.runner, CAPACITY))
        assert logits < 1e-4 and states < 1e-4


def test_backends_without_batches_take_turns(bundle_of):
    with linmu.load(bundle_of("llama", **SHARED), "torch", threads=1) as session:
        batch = new_batch(session.runner, CAPACITY)
        assert isinstance(batch, TurnsBatch)
        assert greatest_gaps(session, "llama", batch, 40) == (0, 0)
