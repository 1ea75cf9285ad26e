"""What commands share: results on stdout, everything else on stderr, progress, checks of what is asked for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from linmu.commands.process import drop_stdout

PIPED_WIDTH = 120  # columns of a table that goes to a file or a pipe
ASCII_BOXES = str.maketrans("━─┃│┏┳┓┡╇┩├┼┤└┴┘", "--||" + 12 * "+")  # of reports that go where they do not exist


def require_modules(command: str, extra: str, *modules: str) -> None:
    """Raise MissingComponentError, naming the extra, unless all modules that a command needs are installed."""
    from linmu.system.components import require

    for module in modules:
        require(module, needed_for=f"`{command}`", extra=extra)


class Results:
    """What goes to the real stdout while everything else that is printed goes to stderr."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._unicode = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
        self.gone = False  # whether nobody reads any more

    def text(self, text: str) -> None:
        """Print text as it is."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            self.gone = True
            drop_stdout()

    def json(self, value: Any) -> None:
        """Print one JSON document."""
        self.text(json.dumps(plain(value), ensure_ascii=not self._unicode, allow_nan=False) + "\n")

    def view(self, view: RenderableType) -> None:
        """Print a table."""
        console = Console(file=self._stream)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = PIPED_WIDTH  # rich's 80 would cut tables in files and pipes
        with console.capture() as shown:
            console.print(view)
        self.text(shown.get())

    def report(self, report: Any, json_output: bool) -> None:
        """Print a report as JSON or as text."""
        if json_output:
            return self.json(report.to_json())
        text = report.to_text().rstrip("\n") + "\n"
        self.text(text if self._unicode else text.translate(ASCII_BOXES))


def plain(value: Any) -> Any:
    """A value as JSON knows it: dataclasses and paths unpacked, NaN and infinities as null."""
    if hasattr(value, "to_json"):
        return plain(value.to_json())
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float) and not isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


@contextmanager
def open_results() -> Iterator[Results]:
    """Keep stdout for results: libraries that print there (torch.onnx does) are sent to stderr meanwhile."""
    results = Results(sys.stdout)
    with redirect_stdout(sys.stderr):
        yield results


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr, moved by progress(text) or progress(text, done, total)."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def show(text: str, done: int = 0, total: int | None = None) -> None:
            bar.update(task, description=f"{title}: {text}", completed=done, total=total)

        yield show


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for everyone who works, moved by progress(who, done, total); nothing where stderr is a file."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(who: str, done: int, total: int) -> None:
            if who not in tasks:
                tasks[who] = bars.add_task(who)
            bars.update(tasks[who], completed=done, total=total)

        yield show


def show_view(view: RenderableType) -> None:
    """Print a table on stderr."""
    Console(stderr=True, highlight=False).print(view)


def say(text: str) -> None:
    """Print a line on stderr, as long as it is."""
    Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)
