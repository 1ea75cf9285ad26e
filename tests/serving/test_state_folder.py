"""A folder of kept states: what is read, what is removed, what is never touched."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from linmu.errors import InputError
from linmu.formats.bundle import open_bundle
from linmu.runtimes.state import StateSnapshot
from linmu.serving.state_folder import StateFolder
from tests.bundles import CONV_FIRST, RECURRENT, tiny_bundle

LIMIT = 1 << 20


def key(number: int) -> str:
    return sha256(str(number).encode()).hexdigest()


def state(seed: int, specs=None) -> StateSnapshot:
    generator = np.random.default_rng(seed)
    shapes = {"past.0.conv": (1, 3, 50), "past.0.recurrent": (1, 6, 5, 7)} if specs is None else specs
    tensors = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return StateSnapshot(tensors, 5 + seed, 7 + seed, ())


def same(one: StateSnapshot | None, other: StateSnapshot) -> bool:
    return (
        one is not None
        and replace(one, tensors={}) == replace(other, tensors={})
        and one.tensors.keys() == other.tensors.keys()
        and all(np.array_equal(one.tensors[name], value) for name, value in other.tensors.items())
    )


@pytest.fixture
def bundle(tmp_path):
    return open_bundle(tiny_bundle(tmp_path / "bundle"))


@pytest.fixture
def folder(bundle, tmp_path):
    return StateFolder(tmp_path / "states", bundle, LIMIT)


def path_of(folder: StateFolder, number: int) -> Path:
    return folder.folder / f"linmu-prefix-{key(number)}.state"


def test_states_survive_to_the_bit(folder, bundle, tmp_path):
    for number in range(3):
        folder.write(key(number), state(number))
    again = StateFolder(tmp_path / "states", bundle, LIMIT)
    assert all(same(again.read(key(number)), state(number)) and key(number) in again for number in range(3))
    assert again.read(key(3)) is None and key(3) not in again
    assert (again.removed, again.failures) == (0, 0) and folder.folder.stat().st_mode & 0o777 == 0o700


def test_a_backend_in_another_order_of_axes_reads_them(folder, bundle, tmp_path):
    folder.write(key(0), state(0))
    turned = open_bundle(tiny_bundle(tmp_path / "turned", states=(CONV_FIRST, RECURRENT)))
    found = StateFolder(folder.folder, turned, LIMIT).read(key(0))
    assert np.array_equal(found.tensors["past.0.conv"], state(0).tensors["past.0.conv"].transpose(0, 2, 1))


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize("damage", (_truncated, _flipped, lambda _: b"", lambda _: b"no state" * 99))
def test_damaged_files_are_removed_and_made_anew(damage, folder):
    folder.write(key(0), state(0))
    path = path_of(folder, 0)
    path.write_bytes(damage(path.read_bytes()))
    assert folder.read(key(0)) is None and not path.exists() and folder.removed == 1
    folder.write(key(0), state(0))
    assert same(folder.read(key(0)), state(0))


def test_files_of_another_state_or_model_under_a_name_are_removed(folder, bundle, tmp_path):
    folder.write(key(0), state(0))
    shutil.copy(path_of(folder, 0), path_of(folder, 1))  # renamed by hand
    assert folder.read(key(1)) is None and not path_of(folder, 1).exists()
    small = replace(RECURRENT, shape=("batch", 6, 5, 3))
    other = open_bundle(tiny_bundle(tmp_path / "other", states=(CONV_FIRST, small)))
    stranger = StateFolder(folder.folder, other, LIMIT)
    assert stranger.read(key(0)) is None and not path_of(folder, 0).exists() and stranger.removed == 1


def test_nothing_else_in_the_folder_is_read_or_removed(folder, bundle, tmp_path):
    folder.write(key(0), state(0))
    outside = tmp_path / "outside.state"
    outside.write_bytes(path_of(folder, 0).read_bytes())
    names = ["notes.txt", f"linmu-prefix-{key(4)}.state.bak", "linmu-prefix-short.state", f".linmu-{key(5)}.partial"]
    for name in names:
        (folder.folder / name).write_bytes(b"mine")
    path_of(folder, 6).mkdir()
    os.mkfifo(path_of(folder, 7))
    path_of(folder, 0).unlink()
    path_of(folder, 0).symlink_to(outside)
    small = StateFolder(folder.folder, bundle, 1)  # everything of ours has to go
    assert all(small.read(key(number)) is None for number in (0, 6, 7))
    kept = {*names, path_of(folder, 6).name, path_of(folder, 7).name, path_of(folder, 0).name}
    assert set(os.listdir(folder.folder)) == kept and outside.exists()


def test_a_link_is_not_written_through(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    path_of(folder, 0).symlink_to(outside)
    folder.write(key(0), state(0))
    assert outside.read_bytes() == b"precious" and not path_of(folder, 0).is_symlink()
    assert same(folder.read(key(0)), state(0))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")
def test_files_of_other_users_are_neither_read_nor_removed(folder, bundle):
    folder.write(key(0), state(0))
    os.chown(path_of(folder, 0), 12345, -1)
    assert folder.read(key(0)) is None and key(0) not in folder and path_of(folder, 0).exists()
    StateFolder(folder.folder, bundle, 1)
    assert path_of(folder, 0).exists()
    os.chown(folder.folder, 12345, -1)
    with pytest.raises(InputError, match="other users"):
        StateFolder(folder.folder, bundle, LIMIT)


def test_a_folder_that_others_may_write_into_is_refused(folder, bundle, tmp_path):
    folder.folder.chmod(0o777)
    with pytest.raises(InputError, match="other users"):
        StateFolder(folder.folder, bundle, LIMIT)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot keep states"):
        StateFolder(tmp_path / "file", bundle, LIMIT)


def test_the_states_unread_for_the_longest_go_first(folder, bundle):
    for number in range(4):
        folder.write(key(number), state(number))
        os.utime(path_of(folder, number), ns=(number, number))
    size = path_of(folder, 0).stat().st_size
    assert folder.bytes_on_disk() == 4 * size
    assert same(folder.read(key(0)), state(0))  # now the youngest
    small = StateFolder(folder.folder, bundle, 3 * size)
    assert [key(number) in small for number in range(4)] == [True, False, True, True]
    small.write(key(4), state(4))
    assert [key(number) in small for number in range(5)] == [True, False, False, True, True]
    StateFolder(folder.folder, bundle, 100).write(key(9), state(9))  # larger than all there may be
    assert os.listdir(folder.folder) == []


def test_a_full_disk_is_counted_and_leaves_nothing(folder, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("linmu.serving.state_folder.save_state", full)
    folder.write(key(0), state(0))
    assert folder.failures == 1 and "No space left" in folder.last_failure and os.listdir(folder.folder) == []


def test_what_killed_writers_left_is_cleared(folder, bundle):
    from linmu.files.leftovers import sibling

    left = sibling(path_of(folder, 0), "partial")
    dead = left.with_name(left.name.replace(f"-{os.getpid()}-", "-4194300-"))
    running = left
    for path in (dead, running):
        path.write_bytes(b"half")
    StateFolder(folder.folder, bundle, LIMIT)
    assert os.listdir(folder.folder) == [running.name]


def _busy(bundle_folder: str, states: str, seed: int) -> int:
    """Write, read and trim at random -> how many states were read, all of them right."""
    folder = StateFolder(Path(states), open_bundle(Path(bundle_folder)), 40_000)
    generator, right = np.random.default_rng(seed), 0
    for number in generator.integers(0, 12, 60).tolist():
        found = folder.read(key(number))
        if found is None:
            folder.write(key(number), state(number))
        else:
            assert same(found, state(number))
            right += 1
    assert folder.failures == 0 and folder.removed == 0
    return right


def test_processes_share_it(bundle, tmp_path):
    """Two of them write, read and remove the same files at once: nothing is wrong, half-written or left."""
    arguments = [(str(bundle.folder), str(tmp_path / "states"), seed) for seed in (1, 2)]
    with get_context("spawn").Pool(2) as pool:
        assert min(pool.starmap(_busy, arguments)) > 5
    names = os.listdir(tmp_path / "states")
    assert names and all(name.startswith("linmu-prefix-") for name in names)
    assert StateFolder(tmp_path / "states", bundle, 40_000).bytes_on_disk() <= 40_000
