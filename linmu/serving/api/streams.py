"""Server-sent events of a request."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from linmu.serving.api.taken import Taken

PING_S = 15  # a comment while a prompt is read, so that nobody between takes the stream for dead
SEND_S = 60  # a client that reads nothing for so long is gone


class TicketStream(EventSourceResponse):
    """Lines of a stream; however it ends, and if it never begins, the request is given up."""

    def __init__(self, taken: Taken, lines: AsyncIterator[str]):
        super().__init__(lines, sep="\n", ping=PING_S, send_timeout=SEND_S)
        self._taken = taken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        with self._taken:
            await super().__call__(scope, receive, send)
