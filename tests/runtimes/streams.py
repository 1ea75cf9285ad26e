"""Video over local sockets, as a camera's server sends it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def tcp_server(connections: Sequence[bytes], hold: bool = False) -> Iterator[str]:
    """The address of a server that gives each connection its bytes and closes it; then it is gone.

    hold: the last connection stays open, silent, until the context ends.
    """
    server = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        with server:
            for number, data in enumerate(connections):
                try:
                    with server.accept()[0] as connection:
                        connection.sendall(data)
                        if hold and number == len(connections) - 1:
                            over.wait(30)
                except OSError:
                    return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
    finally:
        over.set()
        thread.join(5)
