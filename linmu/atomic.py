"""Writing files and folders so that a failure, an interrupt or a full disk leaves nothing half-written."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from linmu.errors import InputError

# Files that mark a folder as something linmu (or transformers) wrote: anything else is never replaced.
_OURS = ("manifest.json", "config.json")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXT = ("No space left on device", "File too large", "Disk quota exceeded")


@contextmanager
def atomic_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that is renamed to `target` on success and removed on any failure.

    Raises InputError when `target` exists (unless `overwrite` and linmu wrote it), when its parent cannot be written,
    and when the disk is full while the folder is filled.
    """
    target = Path(target)
    _check_target_folder(target, overwrite)
    made = _make_parents(target)
    temporary = _sibling(target, "partial")
    try:
        _make_folder(temporary, target)
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file() and not path.is_symlink():
                _usual_mode(path)
        _move_folder(temporary, target, overwrite)
    except BaseException as error:  # KeyboardInterrupt too: whatever happened, nothing may stay behind
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)
        if is_disk_full(error):
            raise _disk_full(target, error) from error
        raise


@contextmanager
def atomic_file(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `target` that replaces `target` on success and is removed on any failure.

    The block must create the file. Raises InputError as `atomic_folder` does.
    """
    target = Path(target)
    if target.is_dir():
        raise InputError(f"cannot write {target}", got="a folder", expected="a file name")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already", fix="choose another name or remove it")
    made = _make_parents(target)
    temporary = _sibling(target, "partial")
    try:
        yield temporary
        _usual_mode(temporary)
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException as error:  # as above
        temporary.unlink(missing_ok=True)
        _remove_empty(made)
        if is_disk_full(error):
            raise _disk_full(target, error) from error
        if isinstance(error, PermissionError):
            raise InputError(f"cannot write {target}", got=error.strerror, fix="choose another place") from error
        raise


def write_bytes(target: Path, data: bytes, *, overwrite: bool = True) -> None:
    """Write `data` to `target` in one step; raises InputError as `atomic_file` does."""
    with atomic_file(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk, the quota or the file size limit is exhausted."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    # Libraries written in Rust or C++ (safetensors, onnx) hand the system's message on inside their own exception.
    return isinstance(error, Exception) and any(text in str(error) for text in _FULL_TEXT)


def _disk_full(target: Path, error: BaseException) -> InputError:
    free = shutil.disk_usage(_existing_parent(target)).free
    return InputError(
        f"disk full while writing {target}",
        got=f"{free / 2**20:.0f} MiB free ({error})",
        fix="free some space or choose another place; nothing was written",
    )


def _check_target_folder(target: Path, overwrite: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"cannot write the folder {target}", got="a file or a link of that name", fix="choose another")
    if not target.exists() or (overwrite and not any(target.iterdir())):
        return
    if not overwrite:
        raise InputError(f"{target} exists already", fix="pass --overwrite to replace it, or choose another name")
    if not any((target / name).is_file() for name in _OURS):
        raise InputError(f"will not replace {target}", got="a folder linmu did not write", fix="choose another name")


def _make_parents(target: Path) -> list[Path]:
    missing = [parent for parent in target.absolute().parents if not parent.exists()]
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {target}", got=error.strerror, fix="choose another place") from error
    return missing


def _make_folder(temporary: Path, target: Path) -> None:
    try:
        temporary.mkdir()
    except PermissionError as error:
        raise InputError(f"cannot write {target}", got=error.strerror, fix="choose another place") from error


def _move_folder(temporary: Path, target: Path, overwrite: bool) -> None:
    if not overwrite or not target.exists():
        _check_target_folder(target, overwrite=False)  # it may have appeared meanwhile
        temporary.rename(target)
        return
    old = _sibling(target, "old")
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


def _sibling(target: Path, suffix: str) -> Path:
    absolute = target.absolute()
    return absolute.parent / f".{absolute.name}.{secrets.token_hex(4)}.{suffix}"


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
