"""Names of what is being written, and what killed runs left under such names.

`.NAME.MACHINE-PID-RANDOM.partial` is being written and becomes NAME; `.NAME.….old` was NAME while another folder took
its place (only where two names cannot be exchanged in one step).
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
from functools import cache
from hashlib import sha256
from pathlib import Path

PARTIAL, OLD = "partial", "old"
LONGEST_NAME = 255  # bytes, of every usual file system


def sibling(target: Path, suffix: str) -> Path:
    """A new hidden name beside `target` that says who owns it."""
    absolute = target.absolute()
    owner = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    return absolute.parent / f".{_stem(absolute.name)}.{owner}.{suffix}"


def clear_leftovers(target: Path) -> None:
    """Remove what killed runs of this machine left beside `target`; a folder they had set aside gets its name back.

    What another machine or a running process owns is not touched.
    """
    absolute = target.absolute()
    if os.name != "posix" or not absolute.parent.is_dir():
        return
    own = re.compile(rf"\.{re.escape(_stem(absolute.name))}\.{_machine()}-(\d+)-[0-9a-f]{{8}}\.({PARTIAL}|{OLD})")
    for name in os.listdir(absolute.parent):
        match = own.fullmatch(name)
        if match is None or _alive(int(match[1])):
            continue
        path = absolute.parent / name
        if match[2] == OLD and not os.path.lexists(absolute):
            path.rename(absolute)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _stem(name: str) -> str:
    """The name, or a hash of one that would be too long with what stands around it."""
    return name if len(os.fsencode(name)) <= LONGEST_NAME - 64 else sha256(os.fsencode(name)).hexdigest()[:32]


@cache
def _machine() -> str:
    """Who may judge whether a process id is alive: this machine, inside this container."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True
