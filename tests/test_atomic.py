from __future__ import annotations

import errno
import subprocess
import sys

import numpy as np
import pytest

from linmu.atomic import atomic_file, atomic_folder, write_bytes
from linmu.errors import InputError


def test_folder_appears_only_when_complete(tmp_path):
    target = tmp_path / "a" / "b" / "student"
    with atomic_folder(target) as folder:
        (folder / "config.json").write_text("{}")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert [path.name for path in target.parent.iterdir()] == ["student"]
    assert target.stat().st_mode & 0o777 == target.parent.stat().st_mode & 0o777


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), SystemExit(3)])
def test_a_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        with atomic_folder(tmp_path / "new" / "student") as folder:
            (folder / "half").write_text("half")
            raise error
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_needs_overwrite_and_must_be_ours(tmp_path):
    target = tmp_path / "student"
    target.mkdir()
    (target / "letter.txt").write_text("precious")
    with pytest.raises(InputError, match="--overwrite"):
        with atomic_folder(target):
            pass
    with pytest.raises(InputError, match="did not write"):
        with atomic_folder(target, overwrite=True):
            pass
    (target / "config.json").write_text("{}")
    with atomic_folder(target, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_failed_overwrite_keeps_the_old_folder(tmp_path):
    target = tmp_path / "student"
    target.mkdir()
    (target / "config.json").write_text("old")
    with pytest.raises(ZeroDivisionError):
        with atomic_folder(target, overwrite=True) as folder:
            (folder / "config.json").write_text("new")
            _ = 1 / 0
    assert (target / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_target_that_appears_meanwhile_is_kept(tmp_path):
    target = tmp_path / "student"
    with pytest.raises(InputError, match="exists already"):
        with atomic_folder(target) as folder:
            (folder / "mine").touch()
            target.mkdir()
            (target / "theirs").touch()
    assert [path.name for path in target.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


@pytest.mark.parametrize("link", [False, True])
def test_files_and_links_are_no_folders(tmp_path, link):
    target = tmp_path / "target"
    if link:
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to(tmp_path / "elsewhere")
    else:
        target.write_text("file")
    with pytest.raises(InputError, match="a file or a link"):
        with atomic_folder(target, overwrite=True):
            pass


def test_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        with atomic_folder(tmp_path / "file" / "student"):
            pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("IoError: No space left on device (os error 28)"),
    ],
)
@pytest.mark.parametrize("kind", [atomic_folder, atomic_file])
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, error, kind):
    with pytest.raises(InputError, match="disk full while writing .*nothing was written") as caught:
        with kind(tmp_path / "new" / "target"):
            raise error
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_real_write_error_on_a_full_device(tmp_path):
    with pytest.raises(InputError, match="disk full"):
        with atomic_folder(tmp_path / "target") as folder:
            (folder / "begun").write_bytes(b"x")
            with open("/dev/full", "wb") as device:
                device.write(b"x" * 10)
    assert list(tmp_path.iterdir()) == []


SIZE_LIMIT = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from linmu.atomic import atomic_folder, write_bytes
from linmu.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
target = Path(sys.argv[2])
try:
    if sys.argv[1] == "folder":
        with atomic_folder(target) as folder:
            save_file({"a": np.zeros(4000, np.float32)}, folder / "model.safetensors")
    else:
        write_bytes(target, bytes(9000))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_file_size_limit_of_the_system(tmp_path, kind):
    done = subprocess.run(
        [sys.executable, "-c", SIZE_LIMIT, kind, str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.stdout.startswith("disk full while writing"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_file_replaces_in_one_step(tmp_path):
    target = tmp_path / "state"
    write_bytes(target, b"one")
    write_bytes(target, b"two")
    assert target.read_bytes() == b"two"
    with pytest.raises(InputError, match="exists already"):
        write_bytes(target, b"three", overwrite=False)
    with pytest.raises(KeyError):
        with atomic_file(target) as path:
            path.write_bytes(b"half")
            raise KeyError
    assert target.read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_file_name_that_is_a_folder(tmp_path):
    with pytest.raises(InputError, match="a folder"):
        write_bytes(tmp_path, b"x")


def test_files_have_the_usual_permissions(tmp_path):
    """safetensors makes files that their owner alone can read."""
    from safetensors.numpy import save_file

    plain = tmp_path / "plain"
    plain.write_text("")
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "deep").mkdir()
        save_file({"a": np.zeros(3)}, folder / "deep" / "a.safetensors")
    with atomic_file(tmp_path / "b.safetensors") as file:
        save_file({"a": np.zeros(3)}, file)
    for path in (tmp_path / "folder" / "deep" / "a.safetensors", tmp_path / "b.safetensors"):
        assert path.stat().st_mode == plain.stat().st_mode
