"""Real English text from Debian's documentation packages, as data folders of contexts of equal length.

Get the packages (60 MB; their licences are free ones, but ship no text of them with a model):

    apt-get download debian-handbook python3.11-doc perl-doc git-doc developers-reference

Every page is a text; a twentieth of them, chosen by a hash of their names, is held out. Tables and code stay in, single
short lines (menus, page numbers) go. The same packages give the same folders.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

from debian_package import package_files
from transformers import PreTrainedTokenizerBase

from linmu.errors import InputError
from linmu.formats.data_folder import write_data_folder

PACKAGES = "debian-handbook python3.11-doc perl-doc git-doc developers-reference"
SHORTEST_PAGE, SHORTEST_PARAGRAPH = 1500, 60  # characters
HELD_OUT = 20  # one page of so many
BLOCKS = {"p", "li", "h1", "h2", "h3", "h4", "pre", "div", "dt", "dd", "tr", "br"}
HIDDEN = {"script", "style", "nav", "head"}
LANGUAGE = re.compile(r"/html/(?!en)[a-z]{2}(-[A-Z]{2})?/|\.(?!en)[a-z]{2}(-[a-z]{2})?\.html$")


@dataclass(frozen=True)
class Page:
    """One page's text and whether it is held out."""

    text: str
    held_out: bool


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in HIDDEN
        self.parts.append("\n\n" if tag in BLOCKS else "")

    def handle_endtag(self, tag: str) -> None:
        self.hidden = max(0, self.hidden - (tag in HIDDEN))
        self.parts.append("\n\n" if tag in BLOCKS else "")

    def handle_data(self, data: str) -> None:
        self.parts.append("" if self.hidden else data)


def pages(packages: Iterable[Path]) -> list[Page]:
    """Every page long enough, each text once, in the order of the packages and paths."""
    found: dict[str, Page] = {}
    for package in packages:
        files = sorted(package_files(package, lambda path: path.suffix in (".html", ".pod")), key=lambda item: item[0])
        for path, content in files:
            text = _flowing(_plain(path, content.decode("utf-8", "replace")))
            if len(text) >= SHORTEST_PAGE and not LANGUAGE.search(f"/{path}"):
                digest = hashlib.sha256(path.as_posix().encode()).digest()
                found.setdefault(text[:2000], Page(text, digest[0] % HELD_OUT == 0))
    if not found:
        raise InputError("no English pages in the packages", expected=PACKAGES, fix="apt-get download " + PACKAGES)
    return list(found.values())


def _plain(path: PurePosixPath, source: str) -> str:
    if path.suffix == ".pod":
        return re.sub(r"[A-Z]<+\s?([^<>]*?)\s?>+", r"\1", re.sub(r"^=\w+ ?", "", source, flags=re.MULTILINE))
    parser = _Text()
    parser.feed(source)
    return "".join(parser.parts)


def _flowing(text: str) -> str:
    paragraphs = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text))
    return "\n\n".join(part for part in paragraphs if len(part) >= SHORTEST_PARAGRAPH)


def contexts(
    source: Iterable[Page], tokenizer: PreTrainedTokenizerBase, length: int, held_out: bool, seed: int = 0
) -> list[str]:
    """Pieces of `length` tokens each of the pages of one side, in random order."""
    pieces = []
    for page in source:
        if page.held_out == held_out:
            ids = tokenizer(page.text, verbose=False).input_ids
            pieces += [tokenizer.decode(ids[i : i + length]) for i in range(0, len(ids) - length + 1, length)]
    random.Random(seed).shuffle(pieces)
    return pieces


def write_texts(folder: Path, texts: Iterable[str]) -> int:
    """A data folder of plain texts; returns their number."""
    lines: Iterator[tuple[dict, dict]] = (({"prompt": text, "answer": ""}, {}) for text in texts)
    return write_data_folder(folder, lines)
