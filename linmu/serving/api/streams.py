"""Server-sent events of a ticket."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from linmu.serving.ticket import Ticket

PING_S = 15  # a comment while a prompt is read, so that nobody between takes the stream for dead
SEND_S = 60  # a client that reads nothing for so long is gone


class TicketStream(EventSourceResponse):
    """Lines of a stream; however it ends, and if it never begins, the ticket is given up."""

    def __init__(self, ticket: Ticket, lines: AsyncIterator[str]):
        super().__init__(lines, sep="\n", ping=PING_S, send_timeout=SEND_S)
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        with self._ticket:
            await super().__call__(scope, receive, send)
