"""Pages of the site that are not written by hand: a hook of mkdocs (mkdocs.yml names it).

- `index.md`, `contributing.md`, `changelog.md`: the pages at the top of the checkout, their links turned.
- `reference/cli.md`: every command with its arguments and options, from the program itself.
- `reference/api.md`: every name of `linmu.__all__`, for mkdocstrings, which reads signatures and docstrings from the
  source: neither torch nor transformers is needed to build the site.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_args

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import linmu
from linmu.cli import COMMANDS, app

ROOT = Path(__file__).resolve().parents[1]
TOP_PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
KINDS = {Path: "PATH", str: "TEXT", int: "N", float: "X"}
EXIT_CODES = """
| exit code | meaning |
|---:|---|
| 0 | done |
| 1 | a check ran and failed |
| 2 | bad usage or bad input: one line says what, got, expected, fix |
| 3 | a component is missing: the line names what to install |
| 130, 143, 129 | stopped by Ctrl-C, SIGTERM, SIGHUP |
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site's files."""
    for name, source in TOP_PAGES.items():
        files.append(File.generated(config, name, content=top_page(source)))
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    files.append(File.generated(config, "reference/api.md", content=python_api()))
    return files


def top_page(source: str) -> str:
    """A page of the checkout's top folder as a page of docs/: links to docs/ and to the other top pages are turned."""
    text = (ROOT / source).read_text("utf-8").replace("](docs/", "](")
    for name, other in TOP_PAGES.items():
        text = text.replace(f"]({other}", f"]({name}")
    return text


def command_line() -> str:
    """The reference of the command line, in Markdown."""
    parts = [
        "# Command line",
        "`linmu COMMAND --help` shows the same on a terminal. Results go to stdout, everything else to stderr. "
        "`--debug` in front of a command shows the traceback of an error.",
        EXIT_CODES.strip(),
    ]
    group: Any = typer.main.get_command(app)
    for name in COMMANDS:
        parts += command_section(name, group.commands[name])
    return "\n\n".join(parts) + "\n"


def command_section(name: str, command: Any) -> list[str]:
    """One command: what it does, its usage, a table of its arguments and one of its options, an example."""
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option"]
    usage = ["linmu", name, *(f"{p.name.upper()}" if p.required else f"[{p.name.upper()}]" for p in arguments)]
    usage += [f"{longest(p.opts)} {p.name.upper()}" for p in options if p.required]
    parts = [f"## linmu {name}", inspect.cleandoc(command.help or ""), f"```sh\n{' '.join(usage)} [OPTIONS]\n```"]
    if arguments:
        rows = [f"| `{p.name.upper()}` | {cell(p.help)} | {default(p)} |" for p in arguments]
        parts.append("\n".join(["| argument | meaning | default |", "|---|---|---|", *rows]))
    if options:
        rows = [f"| {spelling(p)} | {cell(p.help)} | {default(p)} |" for p in options]
        parts.append("\n".join(["| option | meaning | default |", "|---|---|---|", *rows]))
    if command.epilog:
        examples = re.split(r",? or (?=linmu )|, (?=linmu )", command.epilog.removeprefix("Example: "))
        parts.append("```sh\n" + "\n".join(examples) + "\n```")
    return parts


def longest(names: list[str]) -> str:
    """The long spelling of an option."""
    return max(names, key=len)


def spelling(option: Any) -> str:
    """All spellings of an option, the short one first, with what its value is where it takes one."""
    names = sorted([*option.opts, *option.secondary_opts], key=len)
    return ", ".join(f"`{name}{'' if option.is_flag else ' ' + value_kind(option)}`" for name in names)


def value_kind(option: Any) -> str:
    """What an option's value is: the name its help gives it, or the kind of its type."""
    annotation = option.type_descriptor.annotation
    (kind,) = get_args(annotation)[:1] or (annotation,)  # the type of an element of a list
    return option.metavar or KINDS[kind]


def default(parameter: Any) -> str:
    """What stands when it is not given; "required" where it must be."""
    if parameter.required:
        return "required"
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return shown
    value = parameter.default
    if value is None or value is False or callable(value):
        return ""
    return f"`{longest(parameter.opts)}`" if value is True else f"`{value}`"


def cell(text: str | None) -> str:
    """A help text as the cell of a table."""
    return " ".join((text or "").split()).replace("|", "\\|")


def public_names() -> dict[str, str]:
    """Name -> dotted name where it is defined, for every public name but the version."""
    found = {}
    for name in linmu.__all__:
        if name != "__version__":
            row = linmu._PUBLIC[name]  # the module, or a row that begins with module and name there
            found[name] = f"{row}.{name}" if isinstance(row, str) else ".".join(row[:2])
    return found


def python_api() -> str:
    """The reference of the public names, each a directive that mkdocstrings fills."""
    parts = [
        "# Python API",
        "Everything that `import linmu` offers. A name is imported when it is first used, so a device needs what it "
        "uses only. `linmu.__version__` is the version. What else may change, and when: [versions](../versioning.md).",
    ]
    for name, place in public_names().items():
        parts.append(f"::: {place}\n    options:\n      heading: linmu.{name}\n      toc_label: linmu.{name}")
    return "\n\n".join(parts) + "\n"
