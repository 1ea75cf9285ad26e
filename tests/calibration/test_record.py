"""Calibration records: the same bytes every time, and nothing that was changed is read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from linmu.calibration.record import CalibrationRecord, Origin, digest, read_record, write_record
from linmu.calibration.statistics import InputStatistics
from linmu.errors import InputError


def a_record() -> CalibrationRecord:
    """A finished record of two matrices, of 5 and 3 channels, and two states."""
    rng, inputs = np.random.default_rng(3), {}
    for name, channels, kept in (("layers.0.in_proj", 5, 4), ("layers.0.down", 3, 30)):
        inputs[name] = InputStatistics(channels, kept)
        inputs[name].add(rng.standard_normal((11, channels)).astype(np.float32))
    values = {"layers.0.recurrent": [0.5, 2.0], "layers.0.log_decay": [-3.0]}
    states = {name: np.array(value, np.float32) for name, value in values.items()}
    return CalibrationRecord(Origin("a" * 64, "random", 2, 3, 4), 2, {"prefill": 11, "decode": 7}, inputs, states)


@pytest.fixture
def path(tmp_path):
    write_record(tmp_path / "calib", a_record())
    return tmp_path / "calib"


def rewritten(path, change):
    """The record with changed tensors and metadata, and the right sha256: as a stranger would."""
    tensors = load_file(path)
    with safe_open(path, "np") as file:
        metadata = dict(file.metadata())
    change(tensors, metadata)
    save_file(tensors, path, {**metadata, "sha256": digest(metadata, tensors)})


def test_round_trip(path):
    found, wanted = read_record(path), a_record()
    assert (found.origin, found.done, found.tokens) == (wanted.origin, wanted.done, wanted.tokens)
    for name, statistics in wanted.inputs.items():
        assert found.inputs[name].count == statistics.count
        for kind, values in statistics.values.items():
            np.testing.assert_array_equal(found.inputs[name].values[kind], values)


def test_one_flipped_bit_anywhere_in_the_numbers_is_found(path):
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    for place in range(start, len(raw), 997):
        damaged = bytearray(raw)
        damaged[place] ^= 64  # an exponent, a row, a priority
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is damaged"):
            read_record(path)


@pytest.mark.parametrize("name", ["tokens", "done", "origin"])
def test_the_hash_covers_the_metadata(path, name):
    tensors = load_file(path)
    with safe_open(path, "np") as file:
        metadata = dict(file.metadata())
    metadata[name] = metadata[name].replace("2", "1").replace("7", "8")
    save_file(tensors, path, metadata)
    with pytest.raises(InputError, match="changed after they were written"):
        read_record(path)


def origin(**changes):
    def change(tensors, metadata):
        metadata["origin"] = json.dumps({**json.loads(metadata["origin"]), **changes})

    return change


def tensor(name, value):
    return lambda tensors, metadata: tensors.update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        origin(samples=-1),
        origin(samples="2"),
        origin(student_hash=3),
        origin(more=1),
        origin(long_tokens=2**70),
        lambda tensors, metadata: metadata.update(done="NaN"),
        lambda tensors, metadata: metadata.update(tokens="[]"),
        lambda tensors, metadata: metadata.update(tokens='{"prefill": 1, "decode": [2]}'),
        lambda tensors, metadata: metadata.pop("origin"),
        lambda tensors, metadata: tensors.pop("layers.0.down/max"),
        tensor("layers.0.down/more", np.zeros(3, np.float32)),
        tensor("layers.0.down/count", np.array([2**62, 2**62])),
        tensor("layers.0.down/count", np.array([11, -1])),
        tensor("layers.0.down/count", np.array([11])),
        tensor("layers.0.down/max", np.zeros(4, np.float32)),
        tensor("layers.0.down/min", np.full(3, 9e9, np.float32)),
        tensor("layers.0.down/max", np.array([9, np.nan, 9], np.float32)),
        tensor("layers.0.down/min", np.full(3, -np.inf, np.float32)),
        tensor("layers.0.down/rows", np.full((11, 3), 1e9, np.float32)),
        tensor("layers.0.down/rows", np.full((11, 3), np.nan, np.float32)),
        tensor("layers.0.down/histogram", np.zeros(2048, np.int64)),
        tensor("states/layers.0.recurrent", np.array([np.nan], np.float32)),
        tensor("states/layers.0.recurrent", np.zeros((0,), np.float32)),
        tensor("float16_states/layers.0.recurrent", np.zeros(3)),
    ],
)
def test_values_that_no_rows_can_have_given(path, change):
    rewritten(path, change)
    with pytest.raises(InputError, match="is damaged") as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


def test_other_versions_are_named(path):
    rewritten(path, lambda tensors, metadata: metadata.update(format_version="3"))
    with pytest.raises(InputError, match="another version; got 3; expected 4; fix: calibrate again"):
        read_record(path)


def test_a_record_without_its_hash_is_refused(path):
    tensors = load_file(path)
    with safe_open(path, "np") as file:
        metadata = dict(file.metadata())
    save_file(tensors, path, {name: x for name, x in metadata.items() if name != "sha256"})
    with pytest.raises(InputError, match="changed after"):
        read_record(path)
