"""Pictures and clips that were seen before: their text and grid are known, and pixels are made only when asked for.

A server gets a whole conversation with every request, its pictures included. Where a kept state has read them, nobody
looks at their pixels again: a hash of what was sent is enough.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from linmu.errors import InputError
from linmu.files.regular import regular_file
from linmu.layout.types import MediaGrid
from linmu.processing.images import load_image
from linmu.processing.media import LazyCalls, Media, prepare, tile_size
from linmu.processing.settings import ProcessorSettings
from linmu.processing.sources import MediaSource

MOST_KNOWN = 512  # pictures and clips; some KiB of text each
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class _Fact:
    text: str
    grid: MediaGrid
    calls: int
    size: tuple[int, int]


class KnownMedia:
    """Prepares the media of one processor, any thread at a time, and remembers what became of the last ones."""

    def __init__(self, most: int = MOST_KNOWN):
        self._most, self._lock = most, Lock()
        self._facts: OrderedDict[str, _Fact] = OrderedDict()

    def prepare(self, medium: MediaSource, settings: ProcessorSettings) -> Media:
        """As linmu.processing.media.prepare, with `digest`; pixels of a medium that is known are made when asked for.

        Raises InputError for a file that is changed while it is read, too.
        """
        stamp = _stamp(medium)
        medium = _in_memory(medium)
        digest = media_digest(medium)
        make = _maker(medium, stamp, settings)
        with self._lock:
            fact = self._facts.get(digest)
            if fact is not None:
                self._facts.move_to_end(digest)
        if fact is not None:
            return Media(fact.text, fact.grid, LazyCalls(lambda: make().calls, fact.calls, fact.size), digest)
        made = make()
        with self._lock:
            self._facts[digest] = _Fact(made.text, made.grid, len(made.calls), tile_size(made.calls))
            while len(self._facts) > self._most:
                self._facts.popitem(last=False)
        return replace(made, digest=digest)


def media_digest(medium: MediaSource) -> str:
    """Hexadecimal sha256 of what a medium was given as, and how it is to be sampled; InputError for unreadable files.

    Equal digests mean equal pixels under one processor's settings. A file counts as its bytes, a Pillow image as its
    pixels. Files that differ in their bytes alone have other digests.
    """
    options = [medium.kind, medium.fps, medium.min_pixels, medium.max_pixels]
    source, digest = medium.source, sha256(json.dumps(options).encode())
    if isinstance(source, np.ndarray):
        _update(digest, f"array {source.dtype.str} {source.shape}", np.ascontiguousarray(source).data)
    elif isinstance(source, Image.Image):
        pixels = np.asarray(load_image(source))
        _update(digest, f"image {pixels.shape}", np.ascontiguousarray(pixels).data)
    elif isinstance(source, bytes | bytearray | memoryview):
        _update(digest, "bytes", source)
    elif isinstance(source, str) and source[:5].lower() == "data:":
        _update(digest, "url", source.encode())
    elif isinstance(source, str | os.PathLike):
        digest.update(b"bytes\0")
        _update_from_file(digest, Path(os.fsdecode(source)), medium.kind)
    else:
        raise InputError(f"a medium of kind {medium.kind}", got=type(source).__name__, expected="a file, bytes, pixels")
    return digest.hexdigest()


def _update(digest: Any, label: str, data: Any) -> None:
    digest.update(label.encode() + b"\0")
    digest.update(data)


def _update_from_file(digest: Any, path: Path, kind: str) -> None:
    try:
        with regular_file(path, f"the {kind}").open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"cannot read the {kind} {path}", got=error.strerror) from error


def _file(medium: MediaSource) -> Path | None:
    """The file that a medium is read from, or None."""
    source = medium.source
    if isinstance(source, os.PathLike) or (isinstance(source, str) and source[:5].lower() != "data:"):
        path = Path(os.fsdecode(source))
        return path if "\0" not in str(path) and "://" not in os.fsdecode(source) else None
    return None


def _stamp(medium: MediaSource) -> tuple[int, ...] | None:
    """What tells that a file is another one or was changed; None for media that are no readable files."""
    path = _file(medium)
    try:
        facts = None if path is None else path.stat()
    except (OSError, ValueError):  # reading it says what is wrong
        return None
    return None if facts is None else (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)


def _in_memory(medium: MediaSource) -> MediaSource:
    """A picture's array copied: whoever gave it may change it before its pixels are asked for."""
    if isinstance(medium.source, np.ndarray | Image.Image) and not medium.kept:
        return replace(medium, source=medium.source.copy(), kept=True)
    return medium


def _maker(medium: MediaSource, stamp: tuple[int, ...] | None, settings: ProcessorSettings) -> Callable[[], Media]:
    def make() -> Media:
        made = prepare(medium, settings)
        if _stamp(medium) != stamp:
            raise InputError(
                f"the {medium.kind} {medium.source} was changed while it was read", fix="send the request again"
            )
        return made

    return make


def digests_of(media: Sequence[Media]) -> tuple[str, ...]:
    """The digests of media that all have one, else ()."""
    found = tuple(item.digest for item in media)
    return found if all(found) else ()
