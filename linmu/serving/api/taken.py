"""A request that the engine has taken: its ticket, and files that it may still read."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from linmu.errors import LinmuError
from linmu.serving.ticket import Ticket


class Scratch:
    """A folder for one request's clips, made when the first one comes; its name is nobody's business."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def new_file(self) -> Path:
        """A place for a file."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="linmu-request-")
        self._files += 1
        return Path(self._folder.name) / str(self._files)

    def hide(self, error: LinmuError) -> None:
        """Say "the request" wherever an error names the folder."""
        if self._folder is not None:
            error.replace_text(self._folder.name, "the request")

    def close(self) -> None:
        """Remove it."""
        if self._folder is not None:
            self._folder.cleanup()


@dataclass(frozen=True)
class Taken:
    """A context manager: behind it the ticket is cancelled if it was not read to its end, and the files are gone.

    The files stay until then because a clip that was seen before is decoded when its turn comes, if at all.
    """

    ticket: Ticket
    scratch: Scratch

    def __enter__(self) -> Taken:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give up."""
        self.ticket.cancel()
        self.scratch.close()
