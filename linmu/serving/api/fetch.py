"""Fetching a picture or a clip from a URL of the public network: what is connected to is the address checked."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable
from threading import Timer
from urllib.parse import SplitResult, urljoin, urlsplit

from linmu.errors import InputError
from linmu.serving.api.addresses import is_public
from linmu.serving.api.errors import too_large

REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 3
LONGEST_URL = 8192
PIECE = 2**16  # bytes read at a time
HEADERS = {"User-Agent": "linmu", "Accept": "image/*, video/*", "Accept-Encoding": "identity"}
FAILURES = (OSError, http.client.HTTPException, UnicodeError, ValueError)  # ValueError: what a URL may not hold

Allowed = Callable[[str], bool]  # an address as text -> whether it may be connected to


def fetch(url: str, most_bytes: int, seconds: float, allowed: Allowed = is_public) -> bytes:
    """The bytes behind a URL; raises InputError when it cannot be had, ApiError (413) beyond `most_bytes`.

    http and https only. Every address a name stands for must be allowed, and the same is asked again of every redirect.
    No proxy, no cookie, no password; all of it within `seconds`.
    """
    end = time.monotonic() + seconds
    for _ in range(MOST_REDIRECTS + 1):
        parts = _checked(url)
        try:
            status, location, data = _get(parts, _address(parts, allowed), most_bytes, end)
        except FAILURES as error:
            late = time.monotonic() >= end
            got = f"nothing whole within {seconds:g} s" if late else type(error).__name__
            raise InputError("cannot fetch a URL", got=got, expected="a picture or a clip") from error
        if status not in REDIRECTS:
            if status != 200:
                raise InputError("cannot fetch a URL", got=f"status {status}", expected="200")
            return data
        if not location:
            break
        url = urljoin(url, location)
    raise InputError("cannot fetch a URL", got="redirects", expected=f"at most {MOST_REDIRECTS}")


def _checked(url: str) -> SplitResult:
    if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise InputError("a URL", got=repr(url[:60]), expected="ASCII without spaces, percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError("a URL", got=error) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise InputError("a URL", got=repr(url[:60]), expected="http://... or https://...")
    if parts.username is not None or parts.password is not None:
        raise InputError("a URL with a name or a password", expected="neither")
    return parts


def _address(parts: SplitResult, allowed: Allowed) -> tuple[int, tuple]:
    """(family, socket address) of a host, all of whose addresses are allowed."""
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not found or not all(allowed(str(item[4][0])) for item in found):
        raise InputError("a URL", got="an address that is not public", expected="a host of the public network")
    family, _, _, _, address = found[0]
    return family, address


def _get(parts: SplitResult, place: tuple[int, tuple], most_bytes: int, end: float) -> tuple[int, str | None, bytes]:
    """Status, Location and body of one request; the socket is shut down when the time is over."""
    family, address = place
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    with socket.socket(family, socket.SOCK_STREAM) as plain:
        plain.settimeout(max(0.01, end - time.monotonic()))
        live: list[socket.socket] = [plain]
        timer = Timer(max(0.0, end - time.monotonic()), _shut, [live])  # a timeout restarts with every byte
        timer.daemon = True
        timer.start()
        try:
            plain.connect(address)
            connection.sock = plain
            if parts.scheme == "https":
                context = ssl.create_default_context()
                secure = context.wrap_socket(plain, server_hostname=parts.hostname, do_handshake_on_connect=False)
                connection.sock = live[0] = secure
                secure.do_handshake()
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={**HEADERS, "Host": parts.netloc})
            answer = connection.getresponse()
            if answer.status != 200:
                return answer.status, answer.headers.get("Location"), b""
            return 200, None, _read(answer, most_bytes, end)
        finally:
            timer.cancel()
            connection.close()


def _read(answer: http.client.HTTPResponse, most_bytes: int, end: float) -> bytes:
    data = bytearray()
    while piece := answer.read(PIECE):
        data += piece
        if len(data) > most_bytes:
            raise too_large(f"what the URL gives has more than {most_bytes:,} bytes")
        if time.monotonic() >= end:
            raise TimeoutError
    if answer.length:  # http.client says nothing of a body that was cut off
        raise ConnectionError
    return bytes(data)


def _shut(live: list[socket.socket]) -> None:
    try:
        socket.socket.shutdown(live[0], socket.SHUT_RDWR)  # not TLS's own, which another thread is in
    except OSError:
        pass  # it was closed meanwhile
