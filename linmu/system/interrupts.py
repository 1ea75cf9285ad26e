"""Ctrl-C, SIGTERM and SIGHUP as one exception, and a flag that cannot get lost.

Python drops an exception that is raised inside a destructor (a progress bar's, say). So the handler also keeps the
signal's number, and loops that run for hours ask for it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_received: list[int] = []


class Stopped(KeyboardInterrupt):
    """A signal that ends the program; what is half-done is cleaned up as on Ctrl-C."""


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raise Stopped in the main thread at each of NAMES; a signal that is ignored (nohup) stays ignored."""
    _received.clear()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        for number, handler in before.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def ignore_further_stops() -> None:
    """A signal came and the program ends of itself: let no second one cut off what is saved at the end."""
    if threading.current_thread() is threading.main_thread():
        for name in NAMES:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)


def raise_if_stopped() -> None:
    """Raise Stopped when a signal came and its exception got lost."""
    if _received:
        raise Stopped(_received[-1])


def exit_code() -> int:
    """What a program that was stopped ends with: 128 and the signal's number (130 for Ctrl-C)."""
    return 128 + int(_received[-1] if _received else signal.SIGINT)


def _stop(number: int, _: FrameType | None) -> None:
    _received.append(number)
    raise Stopped(number)
