"""The command line as a process: its three streams, signals, and errors of the system as one line."""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from pathlib import Path

from linmu.errors import InputError
from linmu.files.atomic import disk_full, is_disk_full
from linmu.system.interrupts import exit_code


def open_streams() -> None:
    """Give closed streams a place to go, and let a stream of any encoding take any text.

    Without this a file that is opened later would get a closed stream's number, and what is printed would be in it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  for as long as the process lives
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_stdout() -> None:
    """The reader went away: what is still printed goes nowhere, and the interpreter does not complain at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def stopped() -> tuple[str, int]:
    """(what to say, exit code) of a program that Ctrl-C or a signal ended."""
    code = exit_code()
    name = signal.Signals(code - 128).name
    return "interrupted" if name == "SIGINT" else f"stopped by {name}", code


def system_error(error: BaseException) -> InputError | None:
    """An error of the operating system, in one line of what, got and fix; None for any other error."""
    named = getattr(error, "filename", None)
    place = f" {os.fsdecode(named)}" if isinstance(named, str | bytes) else ""
    if is_disk_full(error):
        return disk_full(Path(place.strip() or "."), error)
    if isinstance(error, MemoryError):
        return InputError("not enough memory", got=str(error) or None, fix="free some, or use a smaller model or input")
    if isinstance(error, UnicodeError):
        return InputError("a text or a name that has no bytes", got=error, fix="choose another name")
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return InputError(
            f"the system refuses{place or ' an operation'}",
            got=error.strerror or error,
            fix="check the place, its permissions and the system's limits (ulimit -a)",
        )
    return None
