"""Writing files and folders so that a failure, an interrupt or a full disk leaves nothing half-written."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from linmu.errors import InputError, LinmuError
from linmu.files.exchange import exchange
from linmu.files.leftovers import OLD, PARTIAL, clear_leftovers, sibling

# Files that mark a folder as something linmu (or transformers) wrote: anything else is never replaced.
_OURS = ("manifest.json", "config.json")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TOO_LARGE_TEXT = "File too large"
_FULL_TEXT = ("No space left on device", "Disk quota exceeded", _TOO_LARGE_TEXT)


@contextmanager
def atomic_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that is renamed to `target` on success and removed on any failure.

    Raises InputError when `target` exists (unless `overwrite` and linmu wrote it), when its parent cannot be written,
    and when the disk is full while the folder is filled. What killed runs left is removed first.
    """
    target = Path(target)
    with _system_errors(target):
        clear_leftovers(target)
        _check_target_folder(target, overwrite)
        new_parents = _make_parents(target)
        temporary = sibling(target, PARTIAL)
    try:
        temporary.mkdir()
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file() and not path.is_symlink():
                _usual_mode(path)
        _move_folder(temporary, target, overwrite)
    except BaseException as error:  # KeyboardInterrupt too: whatever happened, nothing may stay behind
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(new_parents)
        _raise_plainly(error, target, temporary)


@contextmanager
def atomic_file(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `target` that replaces `target` on success and is removed on any failure.

    The block must create the file. A link stays and the file it leads to is replaced. Raises InputError as
    `atomic_folder` does, and for a target that exists and is no regular file (a device would be gone for good).
    """
    with _system_errors(target):
        target = _file_target(Path(target), overwrite)
        clear_leftovers(target)
        new_parents = _make_parents(target)
        temporary = sibling(target, PARTIAL)
    try:
        yield temporary
        _usual_mode(temporary)
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException as error:  # as above
        temporary.unlink(missing_ok=True)
        _remove_empty(new_parents)
        _raise_plainly(error, target, temporary)


def write_bytes(target: Path, data: bytes, *, overwrite: bool = True) -> None:
    """Write `data` to `target` in one step; raises InputError as `atomic_file` does."""
    with atomic_file(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)


def check_file_target(target: Path) -> None:
    """Raise InputError when `atomic_file` would refuse this place: to be asked before work that takes long."""
    with _system_errors(target):
        parent = _file_target(Path(target), overwrite=True).absolute().parent
        if not os.access(_existing_parent(parent / "x"), os.W_OK | os.X_OK):
            raise InputError(f"cannot write {target}", got="Permission denied", fix="choose another place")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk, the quota or the file size limit is exhausted."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    # Libraries written in Rust or C++ (safetensors, onnx) hand the system's message on inside their own exception.
    return isinstance(error, Exception) and any(text in str(error) for text in _FULL_TEXT)


def disk_full(target: Path, error: BaseException) -> InputError:
    """What to say of an error that `is_disk_full` knows."""
    if getattr(error, "errno", None) == errno.EFBIG or _TOO_LARGE_TEXT in str(error):
        return InputError(
            f"the limit of file sizes was reached while writing {target}",
            got=_TOO_LARGE_TEXT,
            fix="raise it (ulimit -f) or choose another file system; nothing was written",
        )
    free = shutil.disk_usage(_existing_parent(target)).free
    return InputError(
        f"disk full while writing {target}",
        got=f"{free / 2**20:.0f} MiB free ({getattr(error, 'strerror', None) or error})",
        fix="free some space or choose another place; nothing was written",
    )


@contextmanager
def _system_errors(target: Path) -> Iterator[None]:
    """What the system says of a place (too long, a loop of links, read-only, no text) as an InputError."""
    try:
        if b"\0" in os.fsencode(target):
            raise ValueError("a name with a NUL")
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL, or characters that no file name has
        raise InputError(
            f"cannot write {str(target)!a:.300}",
            got=getattr(error, "strerror", None) or error,
            fix="choose another place",
        ) from error


def _raise_plainly(error: BaseException, target: Path, temporary: Path) -> None:
    """Raise `error` again, in terms of `target`: the temporary name is nobody's business and gone by now."""
    if isinstance(error, LinmuError):
        error.replace_text(str(temporary), str(target))
    elif is_disk_full(error):
        raise disk_full(target, error) from error
    elif isinstance(error, OSError) and _names(error, temporary, target):
        raise InputError(f"cannot write {target}", got=error.strerror, fix="choose another place") from error
    raise error


def _names(error: OSError, *places: Path) -> bool:
    """Whether a system's error is about one of these places (not about something that was read)."""
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return any(name.startswith(str(place)) for name in named for place in places)


def _file_target(target: Path, overwrite: bool) -> Path:
    """The file that is to be replaced, links followed; raises InputError when it may not be."""
    try:
        mode = target.stat().st_mode  # of what a link leads to
    except FileNotFoundError:
        mode = None
    if mode is not None and stat.S_ISDIR(mode):
        raise InputError(f"cannot write {target}", got="a folder", expected="a file name")
    if mode is not None and not stat.S_ISREG(mode):
        raise InputError(f"will not replace {target}", got="a device, FIFO or socket", expected="a file name")
    if mode is not None and not overwrite:
        raise InputError(f"{target} exists already", fix="choose another name or remove it")
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def require_free_folder(target: Path, overwrite: bool) -> None:
    """Raise InputError where atomic_folder would refuse `target`: for commands that take long before they write."""
    with _system_errors(target):
        _check_target_folder(target, overwrite)


def _check_target_folder(target: Path, overwrite: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"cannot write the folder {target}", got="a file or a link of that name", fix="choose another")
    if not target.exists() or (overwrite and not any(target.iterdir())):
        return
    if not overwrite:
        raise InputError(f"{target} exists already", fix="pass --overwrite to replace it, or choose another name")
    if not any((target / name).is_file() for name in _OURS):
        raise InputError(f"will not replace {target}", got="a folder linmu did not write", fix="choose another name")
    for root, _, _ in os.walk(target):
        if not os.access(root, os.W_OK | os.X_OK):  # it could be renamed, but not removed afterwards
            raise InputError(f"cannot replace {target}", got=f"read-only folder {root}", fix=f"chmod -R u+w {target}")


def _make_parents(target: Path) -> list[Path]:
    missing = [parent for parent in target.absolute().parents if not parent.exists()]
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    return missing


def _move_folder(temporary: Path, target: Path, overwrite: bool) -> None:
    if not overwrite or not target.exists():
        _check_target_folder(target, overwrite=False)  # it may have appeared meanwhile
        temporary.rename(target)
        return
    if exchange(temporary, target):
        shutil.rmtree(temporary, ignore_errors=True)  # the old one by now
        return
    old = sibling(target, OLD)
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _usual_mode(path: Path) -> None:
    """The permissions that a new file has here: safetensors makes files that their owner alone can read."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return  # somebody else uses it by now


def _existing_parent(target: Path) -> Path:
    return next(parent for parent in target.absolute().parents if parent.exists())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
