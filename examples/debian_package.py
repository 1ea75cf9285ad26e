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


def read_source(source: Path, installed: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Path below the folder `installed` and content (of an SVG: none) of all files whose names are `wanted`.

    source: a .deb file, an unpacked package or the folder itself. Raises InputError for anything else.
    """
    if source.is_dir():
        root = source / installed if (source / installed).is_dir() else source
        for file in root.rglob("*"):
            if wanted(file.name) and file.is_file():
                yield file.relative_to(root).as_posix(), b"" if file.suffix == ".svg" else file.read_bytes()
    elif source.is_file():
        for path, content in package_files(source, lambda path: wanted(path.name) and path.is_relative_to(installed)):
            yield path.relative_to(installed).as_posix(), content
    else:
        raise InputError("no such file or folder", got=source, expected="a .deb file or a folder with its files")


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
