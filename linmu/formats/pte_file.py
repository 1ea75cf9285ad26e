"""The head of an ExecuTorch program file (.pte), read without ExecuTorch: is it whole, and can its reader be this one.

Format: a FlatBuffer whose identifier stands at byte 4, and behind it an extended header: magic "eh00", its length, then
three 64-bit little-endian numbers: bytes of the FlatBuffer, offset of the first segment, bytes of all segments.
"""

from __future__ import annotations

import struct
from pathlib import Path

from linmu.errors import BundleError

IDENTIFIER = b"ET12"  # of ExecuTorch's program format; another one is another format
MAGIC = b"eh00"
HEAD_BYTES = 40
AGAIN = "copy the bundle again, or export it again"


def check_program_file(path: Path) -> int:
    """Bytes that the header promises; raises BundleError for a file of another format, cut short or unreadable."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise BundleError(f"cannot read {path}", got=error.strerror, fix=AGAIN) from error
    if len(head) < HEAD_BYTES:
        raise BundleError(f"{path} is cut short", got=f"{size} bytes", expected="an ExecuTorch program", fix=AGAIN)
    if head[4:8] != IDENTIFIER or head[8:12] != MAGIC:
        raise BundleError(
            f"{path} is no ExecuTorch program of this version",
            got=repr(head[4:12]),
            expected=repr(IDENTIFIER + MAGIC),
            fix="export the bundle again with this version of linmu",
        )
    program, offset, segments = struct.unpack("<QQQ", head[16:40])
    whole: int = offset + segments if offset else program
    if size < whole:
        raise BundleError(f"{path} is cut short", got=f"{size} bytes", expected=f"{whole} bytes", fix=AGAIN)
    return whole
