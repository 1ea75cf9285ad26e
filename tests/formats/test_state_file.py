from __future__ import annotations

import json
import os
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from linmu.errors import StateError
from linmu.formats.state_file import load_state, save_state
from linmu.runtimes.state import SessionState
from tests.bundles import CONV_FIRST, CONV_LAST, RECURRENT, tiny_manifest

LAST, FIRST = (CONV_LAST, RECURRENT), (CONV_FIRST, RECURRENT)
POSITION = {"position": 17, "tokens": 40}
HASH = "ab" * 32


def tensors(batch=2):
    rng = np.random.default_rng(0)
    shapes = {"past.0.conv": (batch, 3, 50), "past.0.recurrent": (batch, 6, 5, 7)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "state.safetensors"
    save_state(path, tensors(), specs=LAST, model_hash=HASH, position=POSITION)
    return path


def test_round_trip(saved):
    restored, position = load_state(saved, LAST, HASH)
    assert position == POSITION
    for name, array in tensors().items():
        np.testing.assert_array_equal(restored[name], array)


def test_equal_states_make_equal_files(tmp_path):
    """safetensors itself orders metadata anew in every call."""
    files = []
    for number in range(12):
        path = tmp_path / f"{number}.safetensors"
        save_state(path, tensors(), specs=LAST, model_hash=HASH, position=POSITION)
        files.append(path.read_bytes())
    assert len(set(files)) == 1


def test_file_is_canonical_and_another_axis_order_reads_it(saved):
    conv = tensors()["past.0.conv"]
    expected = np.stack([[conv[b, :, c] for c in range(50)] for b in range(2)])
    np.testing.assert_array_equal(load_file(saved)["past.0.conv"], expected)
    np.testing.assert_array_equal(load_state(saved, FIRST, HASH)[0]["past.0.conv"], expected)


def test_extra_position_values_come_back(tmp_path):
    position = {**POSITION, "rope_delta": -5, "tail": [1, 2]}
    save_state(tmp_path / "s", tensors(1), specs=LAST, model_hash=HASH, position=position)
    assert load_state(tmp_path / "s", LAST, HASH)[1] == position


def test_another_model_is_refused(saved):
    with pytest.raises(StateError, match="belongs to another model"):
        load_state(saved, LAST, "cd" * 32)


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_truncated(saved, cut):
    saved.write_bytes(saved.read_bytes()[:cut])
    with pytest.raises(StateError, match="state.safetensors is not a whole"):
        load_state(saved, LAST, HASH)


def test_changed_data(saved):
    raw = bytearray(saved.read_bytes())
    raw[-2] ^= 1  # the last float stays finite
    saved.write_bytes(raw)
    with pytest.raises(StateError, match="changed after it was saved"):
        load_state(saved, LAST, HASH)


def test_missing_file_and_other_safetensors(tmp_path):
    with pytest.raises(StateError, match="cannot read"):
        load_state(tmp_path / "none", LAST, HASH)
    save_file(tensors(), tmp_path / "plain")
    with pytest.raises(StateError, match="no state file"):
        load_state(tmp_path / "plain", LAST, HASH)


def changed(**changes):
    return {**tensors(), **changes}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"past.0.conv": tensors()["past.0.conv"]}, "lacks past.0.recurrent"),
        (changed(more=np.zeros(3, np.float32)), "does not: more"),
        (changed(**{"past.0.conv": np.zeros((2, 50, 3), np.float32)}), "past.0.conv; got float32.2, 50, 3"),
        (changed(**{"past.0.conv": np.zeros((3, 3, 50), np.float32)}), "past.0.recurrent; got"),
        (changed(**{"past.0.conv": np.zeros((2, 3, 50), np.float16)}), "float16"),
        (changed(**{"past.0.conv": np.full((2, 3, 50), np.nan, np.float32)}), "NaN"),
        (changed(**{"past.0.conv": np.full((2, 3, 50), np.inf, np.float32)}), "infinite"),
    ],
)
def test_wrong_tensors_are_not_saved(tmp_path, value, message):
    with pytest.raises(StateError, match=message):
        save_state(tmp_path / "s", value, specs=LAST, model_hash=HASH, position=POSITION)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("position", [{"position": 1}, {"position": -1, "tokens": 2}, {**POSITION, "format": "x"}])
def test_wrong_positions_are_not_saved(tmp_path, position):
    with pytest.raises(StateError):
        save_state(tmp_path / "s", tensors(), specs=LAST, model_hash=HASH, position=position)


def test_nan_in_a_file_is_refused(saved):
    from safetensors import safe_open

    with safe_open(saved, "numpy") as file:
        metadata = file.metadata()
    content = load_file(saved)
    content["past.0.recurrent"][1, 2, 3, 4] = np.nan
    save_file(content, saved, metadata)
    with pytest.raises(StateError, match="past.0.recurrent has NaN"):
        load_state(saved, LAST, HASH)


def test_shape_of_another_model_with_the_same_hash(saved):
    other = (CONV_LAST, RECURRENT.__class__(**{**vars(RECURRENT), "shape": ("batch", 6, 7, 5)}))
    with pytest.raises(StateError, match="expected float32.batch, 6, 7, 5"):
        load_state(saved, other, HASH)


def edited(path, **changes):
    """The file with other metadata (None: without), its sha256 as it was."""
    tensors = load_file(path)
    with safe_open(path, "np") as file:
        metadata = {**file.metadata(), **changes}
    save_file(tensors, path, {name: value for name, value in metadata.items() if value is not None})


@pytest.mark.parametrize("changes", [{"position": "18"}, {"tokens": "41"}, {"pending": "[3]"}, {"more": "1"}])
def test_the_hash_covers_position_and_tokens(saved, changes):
    edited(saved, **changes)
    with pytest.raises(StateError, match="was changed after it was saved"):
        load_state(saved, LAST, HASH)


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StateError, match="regular file"):
        load_state(tmp_path / "fifo", LAST, HASH)


def test_an_earlier_version_is_named(saved):
    edited(saved, format_version="1")
    with pytest.raises(StateError, match="got linmu-state version 1; expected linmu-state version 2"):
        load_state(saved, LAST, HASH)


def test_sizes_are_compared_before_the_file_is_read(tmp_path):
    """A file of 4 GB that takes no room: its header says sizes that the model does not have."""
    count = 1 << 30
    header = {
        "past.0.conv": {"dtype": "F32", "shape": [1, count], "data_offsets": [0, 4 * count]},
        "past.0.recurrent": {"dtype": "F32", "shape": [0], "data_offsets": [4 * count, 4 * count]},
        "__metadata__": {"format": "linmu-state", "format_version": "2", "model_hash": HASH},
    }
    raw = json.dumps(header).encode()
    with (tmp_path / "big").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + 4 * count)
    tracemalloc.start()
    with pytest.raises(StateError, match="past.0.conv; got float32"):
        load_state(tmp_path / "big", LAST, HASH)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


class Handle:
    """Where a session keeps its state: only what loading does to it counts here."""

    def __init__(self):
        self.written = []

    def write(self, tensors):
        self.written.append(tensors)


class Opened:
    manifest, model_hash = tiny_manifest(), HASH


class Opener:
    def new_state(self):
        return Handle()


@pytest.mark.parametrize(
    ("batch", "position"),
    [(1, {"position": 3, "tokens": 3, "pending": bad}) for bad in ([-1], [11], [True], [2**63], "no", [[1]], 4)]
    + [(2, {"position": 3, "tokens": 3}), (1, {"position": 2**53, "tokens": 3})],
)
def test_a_refused_state_changes_nothing(tmp_path, batch, position):
    path, state = tmp_path / "state", SessionState(Opener(), Opened())
    state.position, state.tokens, state.pending = 7, 8, (9,)
    try:
        save_state(path, tensors(batch), specs=LAST, model_hash=HASH, position=position)
    except StateError:
        return  # it cannot even be written
    with pytest.raises(StateError):
        state.load(path)
    assert (state.position, state.tokens, state.pending, state.handle.written) == (7, 8, (9,), [])
