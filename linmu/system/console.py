"""Tables and texts of rich as plain text: what a report's `to_text` gives."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType


def plain_text(*parts: RenderableType, width: int) -> str:
    """The parts one below the other, without colours, in lines of at most `width` columns."""
    stream = StringIO()
    console = Console(file=stream, width=width, color_system=None)
    for part in parts:
        console.print(part)
    return stream.getvalue()
