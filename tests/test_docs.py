"""What README and the pages of docs/ promise about themselves: short, no dead link, no name of a thing that is gone."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import typer

import linmu
from linmu.cli import app
from tests.paths import ROOT

DOCS = ROOT / "docs"
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*FRONT, *sorted(DOCS.rglob("*.md"))]
MODEL_CARDS = sorted((ROOT / folder / "README.md") for folder in ("linmu/demo/student", "examples/demo_teacher"))
# Pages of the site that docs/generate.py makes: mkdocs checks links to them (make docs).
GENERATED = ("reference/cli.md", "reference/api.md", "changelog.md", "contributing.md")
README_WORDS = 700
CELL_WORDS = 25
# Folders whose files pages name by their path from the checkout or, for modules, from the package.
TOP_FOLDERS = ("linmu", "docs", "examples", "benchmarks", "tests", "optimum", ".github")


def names(paths):
    return [path.relative_to(ROOT).as_posix() for path in paths]


def without_code(text: str) -> str:
    """A page without its fenced blocks; lines keep their numbers."""
    return re.sub(r"^( *)(```|~~~).*?^\1\2 *$", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)


def slug(heading: str) -> str:
    """The anchor that GitHub and mkdocs give a heading."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text.lower()).strip())


@cache
def anchors(page: Path) -> set[str]:
    text = without_code(page.read_text("utf-8"))
    return {slug(match) for match in re.findall(r"^#+ +(.*?) *#*$", text, re.M)}


def links(text: str) -> list[str]:
    """Targets of links and pictures, footnotes of neither code nor the network."""
    text = re.sub(r"`[^`\n]*`", "", without_code(text))
    return [url for url in re.findall(r"\]\(<?([^)\s>]+)>?\)", text) if not re.match(r"[a-z]+:", url)]


def cells(text: str) -> list[str]:
    rows = [line.strip() for line in without_code(text).splitlines() if line.lstrip().startswith("|")]
    return [cell.strip() for row in rows for cell in re.split(r"(?<!\\)\|", row.strip("|"))]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= README_WORDS


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_table_cells_are_short(page):
    long = [cell for cell in cells(page.read_text("utf-8")) if len(cell.split()) > CELL_WORDS]
    assert long == [], f"over {CELL_WORDS} words: say it in a paragraph below the table"


@pytest.mark.parametrize("page", PAGES + MODEL_CARDS, ids=names(PAGES + MODEL_CARDS))
def test_links_lead_somewhere(page):
    dead = []
    for url in links(page.read_text("utf-8")):
        path, _, anchor = url.partition("#")
        target = (page.parent / path).resolve() if path else page
        if page.parent == DOCS and path in GENERATED:
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            dead.append(url)
    assert dead == []


def test_pages_of_docs_link_inside_docs():
    """The site has no other files; CHANGELOG and CONTRIBUTING are copied into it."""
    for page in DOCS.rglob("*.md"):
        outside = [url for url in links(page.read_text("utf-8")) if DOCS not in (page.parent / url).resolve().parents]
        assert [url for url in outside if not url.startswith("#")] == [], page


def named_files(text: str) -> list[str]:
    """Paths in backticks that look like a file or a folder of the checkout."""
    found = []
    for code in re.findall(r"`([^`\n]+)`", without_code(text)):
        for word in code.split():
            inside = word.split("/")[0] in TOP_FOLDERS and "/" in word
            if re.fullmatch(r"[\w./-]+", word) and (inside or re.fullmatch(r"\w+(/\w+)+\.py", word)):
                found.append(word)
    return found


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_files_named_exist(page):
    gone = [
        name
        for name in named_files(page.read_text("utf-8"))
        if not any((base / name).exists() for base in (ROOT, ROOT / "linmu"))
    ]
    assert gone == []


def shell_commands(text: str) -> list[list[str]]:
    """Every `linmu COMMAND ...` of the shell blocks and of inline code, cut into words."""
    blocks = re.findall(r"^```(?:sh|console)?\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(r"`(linmu [a-z][^`\n]*)`", without_code(text))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in [*lines, *inline]:
        line = re.split(r"\s#|[;&|]", line.removeprefix("$ "))[0].strip()
        if re.match(r"linmu [a-z]", line) and "..." not in line:
            found.append(shlex.split(line)[1:])
    return found


@cache
def known_options() -> dict[str, set[str]]:
    """Command -> every spelling of its options."""
    commands = typer.main.get_command(app).commands
    return {
        name: {spelling for parameter in command.params for spelling in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in commands.items()
    }


def faults(command: list[str]) -> list[str]:
    """Names in a command line that the program does not have."""
    if command[0] not in known_options():
        return [command[0]]
    options = known_options()[command[0]]
    return [word for word in command[1:] if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in options]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_commands_and_options_exist(page):
    wrong = {" ".join(command): faults(command) for command in shell_commands(page.read_text("utf-8"))}
    assert {command: bad for command, bad in wrong.items() if bad} == {}


def test_site_builds_strictly(tmp_path):
    """No dead link or anchor between pages, generated ones included, and no page that the navigation does not name."""
    pytest.importorskip("mkdocs", reason="pip install 'linmu[docs]'")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line = (tmp_path / "reference/cli/index.html").read_text("utf-8")
    python = (tmp_path / "reference/api/index.html").read_text("utf-8")
    assert [name for name in known_options() if f"linmu {name}" not in line] == []
    assert [name for name in linmu.__all__ if f"linmu.{name}" not in python] == []


def test_the_checks_find_what_they_look_for(tmp_path):
    """Each of the readers above on a page that is wrong in every way."""
    text = "# A page\n\n| a | b |\n|---|---|\n| " + "word " * 26 + "| b |\n\n[gone](gone.md#a-page) `linmu/gone.py`\n"
    text += "`linmu export STUDENT --gone x`\n\n```sh\nlinmu gone   # a comment\nlinmu run b -p 'x y' --gone\n```\n"
    page = tmp_path / "page.md"
    page.write_text(text, "utf-8")
    assert max(len(cell.split()) for cell in cells(text)) == 26
    assert links(text) == ["gone.md#a-page"] and anchors(page) == {"a-page"}
    assert named_files(text) == ["linmu/gone.py"]
    assert [faults(command) for command in shell_commands(text)] == [["gone"], ["--gone"], ["--gone"]]
