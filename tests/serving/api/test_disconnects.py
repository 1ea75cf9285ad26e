"""Clients that go away: their place is free again, wherever their request was, and no other request notices."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable

import pytest

from linmu.serving.request import Limits
from tests.serving.api.servers import conversation, served

LONG = 50_000  # tokens: nobody waits for their end


@pytest.fixture(scope="module")
def narrow(bundle_of):
    with served(bundle_of("llama"), Limits(max_sessions=1, max_queued=4, piece_tokens=8)) as server:
        yield server


def until(true: Callable[[], bool]) -> None:
    """Wait for something that happens soon, and fail where it does not."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def sent(server, document) -> socket.socket:
    """A request on a connection of its own, whose answer nobody has read yet."""
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(document).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def endless(server, **fields):
    """A body whose answer goes on and on: its end token never comes."""
    ends = server.engine.processor.eos_token_ids
    return conversation(logit_bias={str(end): -100 for end in ends}, **{"max_tokens": LONG, **fields})


def idle(server) -> bool:
    counters = server.engine.counters()
    return counters.decoding == counters.reading == counters.queued == 0


@pytest.mark.parametrize("stream", (False, True))
def test_while_it_is_decoded(narrow, stream):
    before = narrow.engine.counters().requests["cancelled"]
    connection = sent(narrow, endless(narrow, stream=stream))
    until(lambda: narrow.engine.counters().decoding == 1)
    connection.close()
    until(lambda: idle(narrow))
    assert narrow.engine.counters().requests["cancelled"] == before + 1
    assert narrow.chat("x").choices


@pytest.mark.parametrize("stream", (False, True))
def test_while_its_prompt_is_read(narrow, stream):
    before = narrow.engine.counters()
    connection = sent(narrow, conversation("many words " * 20_000, stream=stream))
    until(lambda: narrow.engine.counters().reading == 1)
    connection.close()
    until(lambda: idle(narrow))
    after = narrow.engine.counters()
    assert after.requests["cancelled"] == before.requests["cancelled"] + 1
    assert after.completion_tokens == before.completion_tokens


@pytest.mark.parametrize("stream", (False, True))
def test_while_it_waits_in_the_queue(narrow, stream):
    first = sent(narrow, endless(narrow))
    until(lambda: narrow.engine.counters().decoding == 1)
    second, third = (sent(narrow, conversation(stream=stream, max_tokens=2)) for _ in range(2))
    until(lambda: narrow.engine.counters().queued == 2)
    second.close()
    until(lambda: narrow.engine.counters().queued == 1)
    assert narrow.engine.counters().decoding == 1
    first.close()
    assert third.recv(20).startswith(b"HTTP/1.1 200")
    third.close()
    until(lambda: idle(narrow))


def test_before_its_body_is_whole(narrow):
    host, port = narrow.url.removeprefix("http://").split(":")
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        until(lambda: narrow.server._desk.bodies._held == 1)
    until(lambda: narrow.server._desk.bodies._held == 0)


def test_a_server_that_closes_finishes_what_it_has(bundle_of):
    with served(bundle_of("llama")) as server:
        document = endless(server, max_tokens=400)
        whole = server.post(document).json()["choices"]
        answers: list[list] = []
        asking = threading.Thread(target=lambda: answers.append(server.post(document).json()["choices"]))
        asking.start()
        until(lambda: server.engine.counters().decoding == 1)
        server.server.stop()
        asking.join(60)
    assert answers == [whole]


def test_a_closing_server_says_so(bundle_of):
    with served(bundle_of("llama")) as server:
        server.server._desk.closing = True
        assert server.http.get("/health").status_code == 503
        error = server.error(conversation(), status=503)
        assert error["code"] == "closing" and error["type"] == "server_error"
