"""URLs: public addresses only, whatever form they take, and nothing endless."""

from __future__ import annotations

import http.server
import socket
import threading
import time

import pytest

from linmu.errors import InputError
from linmu.serving.api.addresses import is_public
from linmu.serving.api.errors import ApiError
from linmu.serving.api.fetch import fetch
from tests.serving.api.servers import conversation, data_url, picture_message, png, served

PRIVATE = (
    "127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 100.100.100.200 0.0.0.0 255.255.255.255 "
    "224.0.0.1 240.0.0.1 192.0.2.1 198.18.0.1 :: ::1 fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254 ff02::1 2001:db8::1 "
    "::ffff:127.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::a00:1 2002:7f00:1:: "
    "2002:a9fe:a9fe:: 2001:0:4136:e378:8000:63bf:f5ff:fffe localhost 2130706433 0x7f000001 "
).split()
PUBLIC = "1.1.1.1 8.8.8.8 2606:4700:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808".split()
ODD = (
    "http://127.0.0.1:{port}/a.png",
    "http://localhost:{port}/a.png",
    "http://[::1]:{port}/a.png",
    "http://[::ffff:127.0.0.1]:{port}/a.png",
    "http://2130706433:{port}/a.png",
    "http://0x7f.1:{port}/a.png",
    "http://127.1:{port}/a.png",
    "http://0:{port}/a.png",
    "http://169.254.169.254/latest/meta-data/",
    "http://user:pass@example.org/",
    "http://example.org:0/",
    "http://example.org:99999/",
    "http://exa mple.org/",
    "http://example.org\\@127.0.0.1/",
    "http://ex\u00e4mple.org/",
    "http:///a.png",
    "https://",
    "http://" + "a" * 9000,
    "http://a.invalid/a.png",
)


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address):
    assert is_public(address)


class Files(http.server.BaseHTTPRequestHandler):
    """A host with a picture, and with everything that a bad one has."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.server.asked.append(self.headers)
        if name.startswith("to="):
            self.send_response(302)
            self.send_header("Location", name[3:])
            self.end_headers()
            return
        data = png()
        self.send_response(404 if name == "404" else 200)
        if name == "lies":
            self.send_header("Content-Length", str(len(data) + 5))
        self.end_headers()
        try:
            for _ in range(10_000 if name == "endless" else 1):
                self.wfile.write(data * (10 if name == "endless" else 1))
            while name == "drip" and not self.server.over.wait(0.05):
                self.wfile.write(b"x")
        except OSError:
            pass


@pytest.fixture(scope="module")
def host():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.asked, server.over, server.daemon_threads = [], threading.Event(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def anywhere(_: str) -> bool:
    return True


def test_what_a_url_gives(host):
    url = f"http://localhost:{host.server_port}"
    assert fetch(f"{url}/a.png", 10**6, 10, anywhere) == png()
    assert host.asked[-1]["Host"] == f"localhost:{host.server_port}" and "Cookie" not in host.asked[-1]
    assert fetch(f"{url}/to=/to=/a.png", 10**6, 10, anywhere) == png()
    for path in ("404", "lies", "to=/to=/to=/to=/a.png", "to=file:///etc/passwd", "to=ftp://a.org/"):
        with pytest.raises(InputError, match="URL"):
            fetch(f"{url}/{path}", 10**6, 10, anywhere)
    with pytest.raises(ApiError) as caught:
        fetch(f"{url}/endless", 10_000, 10, anywhere)
    assert caught.value.status == 413


def test_nothing_takes_longer_than_it_may(host):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for url in (f"http://127.0.0.1:{host.server_port}/drip", f"http://127.0.0.1:{silent.getsockname()[1]}/"):
            start = time.monotonic()
            with pytest.raises(InputError, match="within"):
                fetch(url, 10**9, 0.5, anywhere)
            assert time.monotonic() - start < 30  # it would be without end


@pytest.mark.parametrize("url", ODD)
def test_nothing_private_is_connected_to(host, url):
    asked = len(host.asked)
    with pytest.raises(InputError, match="URL"):
        fetch(url.format(port=host.server_port), 10**6, 5)
    assert len(host.asked) == asked


def test_a_redirect_is_checked_anew(host):
    def only_by_name(address: str, first: list[str] = []) -> bool:  # noqa: B006  remembers the first
        first.append(address)
        return len(first) == 1

    asked = len(host.asked)
    with pytest.raises(InputError, match="not public"):
        fetch(
            f"http://127.0.0.1:{host.server_port}/to=http://localhost:{host.server_port}/a.png", 10**6, 5, only_by_name
        )
    assert len(host.asked) == asked + 1


def test_a_server_that_fetches(bundle_of, host, monkeypatch):
    """Through the server: refused as it is, and read like a data URI where the address counts as public."""
    message = picture_message(f"http://127.0.0.1:{host.server_port}/a.png")
    with served(bundle_of("smolvlm"), allow_urls=True) as server:
        error = server.error({**conversation(), "messages": message})
        assert "not public" in error["message"] and error["param"] == "messages[0].content[1].image_url"
        monkeypatch.setattr(fetch, "__defaults__", (anywhere,))
        expected = server.chat(messages=picture_message(data_url(png()))).choices[0].message.content
        assert server.chat(messages=message).choices[0].message.content == expected
