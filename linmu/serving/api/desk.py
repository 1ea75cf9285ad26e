"""Between HTTP and the engine: bodies are read, work is done in threads, and a client that goes away is noticed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import TypeVar

import anyio
from anyio.lowlevel import checkpoint
from anyio.to_thread import run_sync
from fastapi import Request as HttpRequest
from starlette.requests import ClientDisconnect

from linmu.errors import LinmuError
from linmu.serving.api.body import Bodies
from linmu.serving.api.errors import ApiError, busy, closing, of_linmu
from linmu.serving.api.media_parts import MediaReader
from linmu.serving.api.settings import ApiSettings
from linmu.serving.api.taken import Scratch, Taken
from linmu.serving.engine import Engine
from linmu.serving.request import Request

T = TypeVar("T")
Maker = Callable[[MediaReader], Request]  # reads media and says what the engine is asked


class Desk:
    """What every route has: the engine, the settings, and how requests are handed in."""

    def __init__(self, engine: Engine, settings: ApiSettings):
        self.engine, self.settings = engine, settings
        self.bodies = Bodies(settings.limits)
        self.closing = False
        self._workers = anyio.CapacityLimiter(settings.limits.workers)
        self._waiting = 0

    @property
    def name(self) -> str:
        """The model's name."""
        return self.settings.name

    async def submit(self, request: HttpRequest, make: Maker, param: str) -> Taken:
        """Make a request in a worker thread and queue it; raises ApiError, ClientDisconnect when nobody waits.

        param: the field that holds the prompt.
        """
        if self.closing:
            raise closing()
        if self._waiting >= self.settings.limits.workers + self.engine.limits.max_queued:
            raise busy("too many requests are being made ready")
        self._waiting += 1
        try:
            return await while_connected(request, lambda: self._submitted(make, param))
        finally:
            self._waiting -= 1

    async def _submitted(self, make: Maker, param: str) -> Taken:
        taken = await run_sync(self._submit, make, param, limiter=self._workers)
        with ExitStack() as stack:
            stack.push(taken)
            await checkpoint()  # where a client's leaving arrives that a thread did not notice
            stack.pop_all()
        return taken

    def _submit(self, make: Maker, param: str) -> Taken:
        scratch = Scratch()
        with ExitStack() as stack:
            stack.callback(scratch.close)
            try:
                ticket = self.engine.submit(make(MediaReader(self.settings, scratch)))
            except LinmuError as error:
                scratch.hide(error)
                raise of_linmu(error, param) from error
            stack.pop_all()
        return Taken(ticket, scratch)


async def while_connected(request: HttpRequest, work: Callable[[], Awaitable[T]]) -> T:
    """What `work` gives; it is cancelled, and ClientDisconnect raised, when the client goes away. Its body is read."""
    results: list[T] = []
    failures: list[ApiError] = []
    async with anyio.create_task_group() as group:

        async def listen() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(listen)
        try:
            results.append(await work())
        except ApiError as error:  # a task group would wrap it
            failures.append(error)
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not results:
        raise ClientDisconnect
    return results[0]
