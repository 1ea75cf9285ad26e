"""A request's ticket: its events are read by any thread or event loop, while the model thread writes them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from threading import Condition

from linmu.serving.request import Event


class Ticket:
    """Events of one request, read once: `for event in ticket` or `async for event in ticket`.

    Reading ends behind the last event, or when the ticket was cancelled; it raises what ended the request otherwise
    (LinmuError: InputError for a fault of this request, EngineClosed). As a context manager it cancels what was not
    read to its end.
    """

    def __init__(self, on_cancel: Callable[[], None] = lambda: None):
        self._events: deque[Event] = deque()
        self._changed = Condition()
        self._on_cancel = on_cancel
        self._wake: Callable[[], None] | None = None
        self._error: BaseException | None = None
        self._done = False
        self.cancelled = False

    @property
    def done(self) -> bool:
        """Whether nothing more is written (events may still be unread)."""
        return self._done

    def __enter__(self) -> Ticket:
        """The ticket itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel."""
        self.cancel()

    def cancel(self) -> None:
        """Give the request up: its place is free within one step, and no event is read any more."""
        with self._changed:
            if self._done or self.cancelled:
                return
            self.cancelled = True
        self.finish()
        self._on_cancel()

    def __iter__(self) -> Iterator[Event]:
        """Wait for event after event."""
        while True:
            with self._changed:
                while not self._events and not self._done:
                    self._changed.wait()
                event = self._next()
            if event is None:
                return
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Wait for event after event in an event loop."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(changed.set)
            except RuntimeError:  # the loop is closed: nobody reads any more
                self.cancel()

        with self._changed:
            self._wake = wake
        while True:
            changed.clear()
            with self._changed:
                waiting = not self._events and not self._done
                event = None if waiting else self._next()
            if waiting:
                await changed.wait()
            elif event is None:
                return
            else:
                yield event

    def put(self, event: Event) -> None:
        """Write an event (the model thread)."""
        with self._changed:
            if not self._done:
                self._events.append(event)
                self._changed.notify_all()
            wake = self._wake
        if wake:
            wake()

    def finish(self, error: BaseException | None = None) -> None:
        """Write that nothing follows, or what ended the request; only the first call counts."""
        with self._changed:
            if not self._done:
                self._done, self._error = True, error
                if self.cancelled:
                    self._events.clear()
                self._changed.notify_all()
            wake = self._wake
        if wake:
            wake()

    def _next(self) -> Event | None:
        if self._events:
            return self._events.popleft()
        if self._error is not None:
            raise self._error
        return None
