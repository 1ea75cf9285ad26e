"""Keys, foreign pages, bodies that are too large or too slow, and a queue that is full."""

from __future__ import annotations

import json
import socket
import threading
import time

import openai
import pytest

from linmu.errors import InputError
from linmu.serving.api.gate import host_of, is_loopback, read_keys
from linmu.serving.api.settings import ApiLimits
from linmu.serving.request import Limits
from tests.serving.api.servers import NAME, conversation, served

LIMITS = ApiLimits(body_bytes=10_000, bodies_bytes=15_000, json_values=500, body_s=1.0, head_s=1.0)
KEYS = ("sk-first", "sk-second")


@pytest.fixture(scope="module")
def small(bundle_of):
    with served(
        bundle_of("llama"), Limits(max_sessions=1, max_queued=0), limits=LIMITS, keys=KEYS, key=KEYS[1]
    ) as server:
        yield server


@pytest.mark.parametrize(
    "header", (None, "", "Bearer", "Bearer sk-firs", "Bearer sk-first2", "Basic sk-first", "sk-first")
)
def test_no_entrance_without_a_key(small, header):
    headers = {"Authorization": header} if header is not None else {"Authorization": b"Bearer \xe9"}
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/no")):
        response = small.http.request(method, path, headers=headers)
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        small.openai.with_options(api_key="sk-third").models.list()


def test_every_key_opens(small):
    for key in KEYS:
        assert small.openai.with_options(api_key=key).models.list().data
    for path in ("/", "/health"):
        assert small.http.get(path, headers={"Authorization": ""}).status_code == 200


def test_key_files(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# people\nsk-a\n\n  sk-b \n")
    assert read_keys(file) == ("sk-a", "sk-b")
    for wrong in ("", "# none\n", "two words\n", "ü\n"):
        file.write_text(wrong, "utf-8")
        with pytest.raises(InputError, match="key file"):
            read_keys(file)
    file.write_bytes(b"\xff\n")
    for path in (file, tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="key file"):
            read_keys(path)


@pytest.mark.parametrize("host", ("example.org", "127.0.0.1.example.org", "10.0.0.1:8000", "", "localhost.example.org"))
def test_foreign_pages_have_no_business_with_a_server_of_this_machine(text, host):
    response = text.http.get("/v1/models", headers={"Host": host})
    assert response.status_code == 403 and response.json()["error"]["code"] == "foreign_host"


@pytest.mark.parametrize("host", ("localhost", "LOCALHOST:80", "127.9.9.9:8000", "[::1]:8000"))
def test_names_of_this_machine(text, host):
    assert text.http.get("/v1/models", headers={"Host": host}).status_code == 200
    assert is_loopback(host_of(host))


def test_large_bodies(small):
    """Counted while they come: neither a length that lies nor none at all helps."""
    body = json.dumps(conversation("x" * 20_000)).encode()
    kind = {"content-type": "application/json"}
    for content in (body, (body[i : i + 1000] for i in range(0, len(body), 1000))):
        response = small.http.post("/v1/chat/completions", content=content, headers=kind)
        assert response.status_code == 413 and response.json()["error"]["code"] == "too_large"
    values = small.post({**conversation(), "messages": [[]] * 1000})
    assert values.status_code == 413
    assert small.post(conversation()).status_code == 200


def raw(server, data: bytes, wait_s: float = 10) -> bytes:
    """What a connection gives back for these bytes, until the server closes it."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait_s) as connection:
        connection.sendall(data)
        found = b""
        while piece := connection.recv(65536):
            found += piece
    return found


def test_slow_clients_are_sent_away(small):
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEYS[0]}\r\n"
    late = raw(small, f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
    assert b" 408 " in late and b'"code":"timeout"' in late
    assert raw(small, b"GET /health HTT") == b"" and raw(small, b"") == b""  # half a head, none at all
    kept = raw(small, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
    assert kept.startswith(b"HTTP/1.1 200")
    assert small.http.get("/health").status_code == 200


def test_a_full_queue(small):
    """One place and no queue: whoever comes second is told when to come again, and the first one is answered."""
    ends = {str(end): -100 for end in small.engine.processor.eos_token_ids}
    stream = small.chat("x", max_completion_tokens=50_000, stream=True, logit_bias=ends)
    next(iter(stream))
    response = small.post(conversation())
    assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["type"] == "rate_limit_error"
    with pytest.raises(openai.RateLimitError):
        small.chat("x")
    stream.close()
    deadline = time.monotonic() + 60
    while (response := small.post(conversation())).status_code == 429 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert response.status_code == 200


def test_many_bodies_together_are_too_large(small):
    """Two that fit alone: the second is told to come again."""
    data = json.dumps({**conversation(), "user": "x" * 9000}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEYS[0]}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    first: list[bytes] = []
    waiting = threading.Thread(target=lambda: first.append(raw(small, head.encode() + data[:-1])))
    waiting.start()
    deadline = time.monotonic() + 30
    while (response := small.post(json.loads(data))).status_code != 429 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert response.status_code == 429
    waiting.join(30)
    assert b" 408 " in first[0]
    assert small.server._desk.bodies._held == 0 and small.post({"model": NAME}).status_code == 400
