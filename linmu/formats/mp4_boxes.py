"""What an MP4 or MOV claims about its number of frames, read before FFmpeg reserves memory for all of them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from linmu.errors import InputError

# the boxes that FFmpeg looks into, wherever they stand
CONTAINERS = frozenset(
    b"moov trak mdia minf stbl moof traf mvex edts dinf udta tref mfra wave sinf schi iprp ipco meta".split()
)
COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4}  # where the number of samples stands in a box, behind its head
FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"pnot", b"uuid")
MOST_BOXES = 2**20
UNKNOWN = 2**64


def check_samples(file: BinaryIO, size: int, path: Path) -> None:
    """Raise InputError when a box of an open MP4 of `size` bytes claims more samples than bytes; leaves it at 0.

    Samples of equal size take 12 bytes in a file, whatever their number, and FFmpeg 32 bytes of memory each. A file
    of another kind passes; so does a damaged one, for FFmpeg to refuse.
    """
    claimed = _most_samples(file, size) if file.read(8)[4:] in FIRST_BOXES else 0
    file.seek(0)
    if claimed > size:
        raise InputError(
            f"the video {path} claims more frames than it has bytes",
            got=f"{'a packed or endless list' if claimed == UNKNOWN else claimed} in {size} bytes",
            fix="write the video anew",
        )


def _most_samples(file: BinaryIO, size: int) -> int:
    """The largest number of samples that a box claims; UNKNOWN where that cannot be told."""
    most, boxes, waiting = 0, 0, [(0, size)]
    while waiting:
        start, stop = waiting.pop()
        while start + 8 <= stop:
            file.seek(start)
            length, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
            head = 8
            if length == 1:
                length, head = int.from_bytes(file.read(8), "big"), 16
            end = min(start + length if length else stop, stop)
            boxes += 1
            if boxes > MOST_BOXES or kind == b"cmov":  # cmov: packed
                return UNKNOWN
            if end < start + head:
                break
            if kind in COUNTS:
                file.seek(start + head + COUNTS[kind])
                most = max(most, int.from_bytes(file.read(4), "big"))
            elif kind in CONTAINERS:
                waiting.append((start + head, end))
                if kind == b"meta":  # with four more bytes in MP4, without in MOV
                    waiting.append((start + head + 4, end))
            start = end
    return most
