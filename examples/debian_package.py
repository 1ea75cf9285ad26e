"""Files out of Debian packages, read directly: nothing is unpacked, and any operating system will do."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from linmu.errors import InputError


def package_files(package: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Path (usr/share/...) and content of every regular file that is `wanted`, in the package's order.

    Raises InputError for what is no Debian package: an ar archive with a tar archive data.tar.* inside.
    """
    with package.open("rb") as stream:
        content = _data_member(stream)
    if content is None:
        raise InputError("not a Debian package", got=package, expected="a .deb file")
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                path = PurePosixPath(member.name.removeprefix("./"))
                if member.isfile() and wanted(path):
                    file = archive.extractfile(member)
                    yield path, file.read() if file else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(
            "cannot read the package", got=error, fix="dpkg-deb -x FILE.deb FOLDER, then FOLDER"
        ) from error


def _data_member(stream: BinaryIO) -> bytes | None:
    if stream.read(8) != b"!<arch>\n":
        return None
    while len(header := stream.read(60)) == 60:
        name, size = header[:16].decode("ascii", "replace").rstrip(" /"), header[48:58].strip()
        if not size.isdigit():
            return None
        content = stream.read(int(size) + int(size) % 2)
        if name.startswith("data.tar"):
            return content
    return None
