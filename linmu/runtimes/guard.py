"""One caller at a time: a session holds one conversation, and two threads in it would answer each other's questions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident

from linmu.errors import InputError


class Guard:
    """Lets one call at a time into a session, and keeps other threads out while an answer is being streamed.

    A stream may be read by any thread. The thread that read it last may also begin something else: the stream then
    is over, and says so when it is read on.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._depth = 0
        self._inside: int | None = None
        self._stream: tuple[object, int] | None = None  # the answer that is being streamed, the thread that read it
        self.closed = False
        self._lent: str | None = None

    @contextmanager
    def lent(self, to: str) -> Iterator[None]:
        """Refuse every call meanwhile: something else runs the model. Raises InputError when it is in use."""
        with self.call():
            self._lent = to
        try:
            yield
        finally:
            self._lent = None

    @contextmanager
    def call(self, stream: object | None = None) -> Iterator[None]:
        """Do something in the session; `stream` is the answer it belongs to. Raises InputError when it is in use."""
        me = get_ident()
        if self._inside == me:  # a call within a call
            yield
            return
        if not self._lock.acquire(blocking=False):
            raise _in_use()
        try:
            self._inside = me
            self._admit(stream, me)
            yield
        finally:
            self._inside = None
            self._lock.release()

    def begin(self) -> object:
        """Announce a streamed answer -> what names it."""
        stream = object()
        with self.call():
            self._stream = (stream, get_ident())
        return stream

    def end(self, stream: object) -> None:
        """An answer is over."""
        if self._stream is not None and self._stream[0] is stream:
            self._stream = None

    def _admit(self, stream: object | None, me: int) -> None:
        if self.closed:
            raise InputError("the session is closed", fix="open it again with linmu.load")
        if self._lent is not None:
            raise InputError(f"the session is in use by {self._lent}", fix="ask the watcher, or close it first")
        if stream is not None:
            if self._stream is None or self._stream[0] is not stream:
                raise InputError(
                    "this answer cannot go on: the session was used for something else meanwhile",
                    fix="read an answer to its end first",
                )
            self._stream = (stream, me)
        elif self._stream is not None and self._stream[1] != me:
            raise _in_use()


def _in_use() -> InputError:
    return InputError(
        "the session is in use by another thread",
        expected="one thread at a time",
        fix="give every thread a session of its own (linmu.load maps the same weights)",
    )
