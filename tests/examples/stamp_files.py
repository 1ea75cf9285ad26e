"""Files of one-coloured stamps, in a folder and in a Debian package."""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path

from PIL import Image

FOLDERS = ("animals/birds", "food/fruit", "vehicles/auto", "household/tools", "clothes", "town/flags")
EACH = 12  # stamps a folder
WORDS = ["".join(letters) for letters in itertools.product("bdgk", "aiu", "lmnrst")]
COLOURS = list(itertools.product((0, 40, 80, 120, 160), repeat=3))


def png(colour, size=(30, 20), around=0) -> bytes:
    """A rectangle of one colour with invisible pixels around it."""
    image = Image.new("RGBA", (size[0] + 2 * around, size[1] + 2 * around), (*colour, 0))
    image.paste((*colour, 255), (around, around, around + size[0], around + size[1]))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def stamp_files() -> dict[str, bytes]:
    """Enough one-coloured stamps for every task, each of its own name, colour and size."""
    files = {}
    for index, (folder, _) in enumerate(itertools.product(FOLDERS, range(EACH))):
        path = f"{folder}/{WORDS[index]}"
        files[f"{path}.txt"] = f"A {WORDS[index]}.\nde.utf8=Ein Wort.\n".encode()
        files[f"{path}.png"] = png(COLOURS[index], (20 + index % 7, 40 - index % 11), around=index % 3)
    return files


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_package(file: Path, files: dict[str, bytes]) -> Path:
    """The files as a Debian package has them."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in {**files, "../../doc/a.txt": b"A thing.", "../../doc/a.png": png((9, 9, 9))}.items():
            member = tarfile.TarInfo(f"./usr/share/tuxpaint/stamps/{name}".replace("tuxpaint/stamps/../../", ""))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data.getvalue()}
    with file.open("wb") as stream:
        stream.write(b"!<arch>\n")
        for name, content in parts.items():
            header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
            stream.write(header + content + b"\n" * (len(content) % 2))
    return file
