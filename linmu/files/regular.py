"""Files that somebody else wrote: regular ones only, and inside the folder that names them."""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath

from linmu.errors import InputError


def regular_file(path: Path, what: str) -> Path:
    """`path` when it is a regular file (or a link to one); raises InputError that calls it `what` otherwise.

    A FIFO would make a reader wait for ever, a device may never end: neither is opened.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, or a name that has no bytes
        raise InputError(f"cannot read {what} {path}", got=getattr(error, "strerror", None) or error) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a FIFO, socket or device"
        raise InputError(f"cannot read {what} {path}", got=kind, expected="a regular file")
    return Path(path)


def inside(folder: Path, name: str, what: str) -> Path:
    """`folder / name`; raises InputError that calls it `what` when that is not inside `folder`, links followed.

    Names go by both systems' rules: a bundle made on one must stay a folder on the other.
    """
    parts = PurePosixPath(name).parts
    foreign = not name or "\\" in name or ":" in name or "\0" in name or name.startswith("~")
    if foreign or PurePosixPath(name).is_absolute() or ".." in parts:
        raise InputError(f"{what} {name!r} leaves its folder", expected=f"a relative name inside {folder}")
    path = Path(folder) / name
    try:
        within = path.resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links that go in circles (Python < 3.13)
        raise InputError(f"cannot read {what} {path}", got=error) from error
    if not within:
        raise InputError(f"{what} {name!r} is a link that leaves {folder}", fix="put the file itself there")
    return path
