"""The process around the application: its socket, slow clients, and signals that end it gracefully."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from linmu.errors import InputError
from linmu.serving.api.app import make_app
from linmu.serving.api.gate import is_loopback
from linmu.serving.api.settings import ApiSettings
from linmu.serving.engine import Engine

BACKLOG = 256
MOST_CONNECTIONS = 512
GRACE_S = 30  # answers that go on when the server is told to end


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens; raises InputError where the address or the port cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, UnicodeError, OverflowError) as error:
        raise InputError(
            f"cannot listen on {host} port {port}",
            got=getattr(error, "strerror", None) or error,
            fix="choose another --host or --port",
        ) from error
    return listening


def only_loopback(listening: socket.socket) -> bool:
    """Whether a bound socket can be reached from this machine alone."""
    return is_loopback(str(listening.getsockname()[0]))


def url_of(listening: socket.socket) -> str:
    """The address of a bound socket as a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn that says when it begins to close, and ends as it was asked to instead of raising the signal again."""

    def __init__(self, engine: Engine, settings: ApiSettings, started: Callable[[], None] = lambda: None):
        self._started = started
        app = make_app(engine, settings)
        self._desk = app.state.desk
        head_s = settings.limits.head_s

        class Protocol(PatientProtocol):
            patience_s = head_s

        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_graceful_shutdown=GRACE_S,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._started()

    def stop(self) -> None:
        """Take no new requests; finish what is being answered. A second call does not wait."""
        self.force_exit = self.should_exit
        self.should_exit = self._desk.closing = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals end the server; whoever started it goes on behind it."""

        def stop(*_: object) -> None:  # no method: sse-starlette would find the server by it, and cut streams short
            self.stop()

        numbers = [signal.SIGINT, signal.SIGTERM]
        try:
            before = {number: signal.signal(number, stop) for number in numbers}
        except ValueError:  # not the main thread
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class PatientProtocol(H11Protocol):
    """h11 whose clients have `patience_s` seconds to send a request's head, from the connection or its first byte."""

    patience_s = 10.0
    _impatient: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._unwait()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Wait on while it is half a head."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwait()
        elif self._impatient is None:
            self._wait()

    def _wait(self) -> None:
        self._impatient = self.loop.call_later(self.patience_s, self._give_up)

    def _unwait(self) -> None:
        if self._impatient is not None:
            self._impatient.cancel()
            self._impatient = None

    def _give_up(self) -> None:
        self._impatient = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def serve(engine: Engine, settings: ApiSettings, listening: socket.socket, started: Callable[[], None]) -> None:
    """Answer requests on a bound socket until a signal ends it; `started` is called when it listens."""
    asyncio.run(Server(engine, settings, started).serve(sockets=[listening]))
