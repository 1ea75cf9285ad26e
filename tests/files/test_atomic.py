from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from linmu.errors import BundleError, InputError
from linmu.files import atomic
from linmu.files.atomic import atomic_file, atomic_folder, check_file_target, write_bytes
from linmu.files.leftovers import sibling
from tests.paths import ROOT


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
from linmu.files.atomic import atomic_folder, write_bytes
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
    assert done.stdout.startswith("the limit of file sizes was reached while writing"), done.stderr
    assert "ulimit -f" in done.stdout
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


def test_a_fifo_is_never_replaced(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "link").symlink_to(fifo)
    for place in (fifo, tmp_path / "link"):
        with pytest.raises(InputError, match="will not replace .*a device, FIFO or socket"):
            write_bytes(place, b"x")
        with pytest.raises(InputError, match="will not replace"):
            check_file_target(place)
    assert stat.S_ISFIFO(fifo.stat().st_mode) and sorted(os.listdir(tmp_path)) == ["fifo", "link"]


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "file")
    for text in (b"new", b"newer"):  # the link leads nowhere at first
        write_bytes(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "deep" / "file").read_bytes() == text
    assert os.listdir(tmp_path / "deep") == ["file"]


@pytest.mark.parametrize("name", ["a" * 300, "loop", "nul\0", "half\ud800", "/proc/none"])
@pytest.mark.parametrize("kind", [atomic_folder, atomic_file])
def test_names_that_no_file_can_have(tmp_path, name, kind):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError) as caught:
        with kind(tmp_path / name) as place:
            place.write_bytes(b"x")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["loop"]


def test_a_name_of_the_greatest_length(tmp_path):
    write_bytes(tmp_path / ("b" * 255), b"x")
    with atomic_folder(tmp_path / ("c" * 255)) as folder:
        (folder / "config.json").touch()
    assert sorted(map(len, os.listdir(tmp_path))) == [255, 255]


def test_messages_name_the_target(tmp_path):
    with pytest.raises(BundleError) as caught:
        with atomic_folder(tmp_path / "out") as folder:
            raise BundleError(f"{folder / 'a.onnx'} is bad", got=folder)
    assert str(caught.value) == f"{tmp_path}/out/a.onnx is bad; got {tmp_path}/out" and caught.value.got == str(
        tmp_path / "out"
    )
    with pytest.raises(InputError, match="cannot write .*/out; got No such file") as other:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "none" / "x").write_text("")
    assert "partial" not in str(other.value)
    with pytest.raises(FileNotFoundError):  # of what was read: not the target's fault
        with atomic_folder(tmp_path / "out"):
            (tmp_path / "input").read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from linmu.files import atomic
target, place = Path(sys.argv[1]), sys.argv[2]
if place == "between":  # where names cannot be exchanged, between the two renames
    atomic.exchange = lambda *_: False
    rename = Path.rename
    def rename_and_die(self, to):
        rename(self, to)
        os.kill(os.getpid(), signal.SIGKILL)
    Path.rename = rename_and_die
with atomic.atomic_folder(target, overwrite=True) as folder:
    (folder / "config.json").write_text("new")
    if place == "inside":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(target: Path, place: str) -> None:
    command = [sys.executable, "-c", KILLED, str(target), place]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr


def test_the_next_run_removes_what_a_killed_one_left(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    killed(target, "inside")
    theirs = [".out.12345678-1-0123abcd.partial", ".outer.partial", ".out.partial", sibling(target, "partial").name]
    for name in theirs:  # another machine's, other files, and one of this very process
        (tmp_path / name).mkdir()
    assert len(os.listdir(tmp_path)) == 6
    with atomic_folder(target, overwrite=True) as folder:
        (folder / "config.json").write_text("newer")
    assert sorted(os.listdir(tmp_path)) == sorted(["out", *theirs])
    assert (target / "config.json").read_text() == "newer"


def test_a_kill_between_two_renames_is_repaired(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    killed(target, "between")
    assert not target.exists() and len(os.listdir(tmp_path)) == 2
    with pytest.raises(InputError, match="exists already"):
        with atomic_folder(target):
            pass
    assert (target / "config.json").read_text() == "old" and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("possible", [True, False])
def test_both_ways_of_replacing_a_folder(tmp_path, possible, monkeypatch):
    if not possible:
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    target = tmp_path / "out"
    for text in ("one", "two", "three"):
        with atomic_folder(target, overwrite=True) as folder:
            (folder / "config.json").write_text(text)
        assert (target / "config.json").read_text() == text and os.listdir(tmp_path) == ["out"]


READ_ONLY = """
import os, sys
from pathlib import Path
from linmu.files.atomic import atomic_folder, check_file_target, write_bytes
from linmu.errors import InputError
root = Path(sys.argv[1])
if os.getuid() == 0:  # root may write everywhere
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
def told(call, *arguments):
    try:
        call(*arguments)
    except InputError as error:
        print(error)
def folder(name, **options):
    with atomic_folder(root / name, **options) as inside:
        (inside / "config.json").touch()
(root / "out" / "golden").mkdir(parents=True)
(root / "out" / "config.json").touch()
(root / "out" / "golden").chmod(0o555)
(root / "closed").mkdir(mode=0o555)
told(lambda: folder("out", overwrite=True))
told(lambda: folder("closed/new"))
told(write_bytes, root / "closed" / "new", b"")
told(check_file_target, root / "closed" / "new")
print(sorted(os.listdir(root)))
(root / "out" / "golden").chmod(0o755)
"""


def test_read_only_folders():
    root = Path(tempfile.mkdtemp())  # not tmp_path: its parents are closed to everybody else
    root.chmod(0o777)
    command = [sys.executable, "-c", READ_ONLY, str(root)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 5, done.stderr
    assert "got read-only folder" in lines[0] and "chmod -R u+w" in lines[0]
    assert all("cannot write" in line and "Permission denied" in line for line in lines[1:4])
    assert lines[4] == "['closed', 'out']"
    shutil.rmtree(root)
