"""Who may come in: keys, and on a server without one, programs of this machine only. Asked before a body is read."""

from __future__ import annotations

import hmac
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from linmu.errors import InputError
from linmu.files.regular import regular_file
from linmu.serving.api.errors import ApiError
from linmu.serving.api.settings import ApiSettings

OPEN_PATHS = ("/", "/health")
MOST_KEY_BYTES = 2**16


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file, one a line; empty lines and lines that begin with # are none. Raises InputError."""
    if regular_file(path, "the key file").stat().st_size > MOST_KEY_BYTES:
        raise InputError(f"the key file {path}", got="a large file", expected="one key per line")
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the key file {path}", got=error, expected="one key per line") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys or not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        got = "a key that no header can hold" if keys else "no key"
        raise InputError(f"the key file {path}", got=got, expected="one key per line, ASCII without spaces")
    return keys


class Gate:
    """ASGI middleware: 401 without a key of the list, 403 for a foreign Host on a server that has no keys."""

    def __init__(self, app: ASGIApp, settings: ApiSettings):
        self._app, self._settings = app, settings
        self._digests = [sha256(key.encode()).digest() for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with an error."""
        if scope["type"] == "http" and (error := self._refusal(scope)) is not None:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._digests:
            if scope["path"] in OPEN_PATHS or self._known(headers.get("authorization", "")):
                return None
            return ApiError(
                401,
                "no valid API key: send Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if self._settings.loopback_only and not is_loopback(host_of(headers.get("host", ""))):
            # a page of another host whose name was made to mean this machine
            return ApiError(403, "this server answers programs of its own machine only", code="foreign_host")
        return None

    def _known(self, authorization: str) -> bool:
        """Whether a key is in the list; takes as long wherever it differs, and whichever it is."""
        scheme, _, key = authorization.partition(" ")
        given = sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(found)


def host_of(header: str) -> str:
    """The host of a Host header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine and nothing else."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
