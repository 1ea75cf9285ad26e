"""Two folders change names in one step, where the system can: then no kill leaves nothing under a name."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_HERE = -100  # AT_FDCWD: relative paths go by the working folder
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS


def exchange(one: Path, other: Path) -> bool:
    """Whether the two now have each other's name; False where system or file system cannot (nothing is changed)."""
    name = {"linux": "renameat2", "darwin": "renamex_np"}.get(sys.platform)
    call = getattr(ctypes.CDLL(None, use_errno=True), name, None) if name else None
    if call is None:
        return False
    first, second = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux":
        return bool(call(_HERE, first, _HERE, second, ctypes.c_uint(_EXCHANGE)) == 0)
    return bool(call(first, second, ctypes.c_uint(_EXCHANGE)) == 0)
