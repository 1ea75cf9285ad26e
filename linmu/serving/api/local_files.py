"""Files of one folder that requests may name."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from linmu.errors import InputError
from linmu.serving.api.errors import too_large


def local_path(url: str, folder: Path) -> Path:
    """The file of a file:// URL, links followed; InputError unless it is a regular file inside `folder`.

    The message is the same for what is outside and for what is not there: nobody learns what other folders hold.
    """
    try:
        parts = urlsplit(url)
        path = Path(unquote(parts.path, errors="strict"))
        plain = parts.scheme == "file" and parts.netloc in ("", "localhost") and not parts.query and not parts.fragment
        if plain and path.is_absolute():
            path = path.resolve(strict=True)
            if path.is_relative_to(folder.resolve(strict=True)) and stat.S_ISREG(path.stat().st_mode):
                return path
    except (OSError, RuntimeError, ValueError):  # RuntimeError: links that go in circles
        pass
    raise InputError("a local file", got=repr(url[:60]), expected="file:///... of a file in the folder that is allowed")


def local_bytes(path: Path, most_bytes: int) -> bytes:
    """What a path of `local_path` holds; raises ApiError (413) beyond `most_bytes`, InputError when it changed."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise InputError("a local file", got="it cannot be read") from error
    if len(data) > most_bytes:
        raise too_large(f"a local file has more than {most_bytes:,} bytes")
    return data
