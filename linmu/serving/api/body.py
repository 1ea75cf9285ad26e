"""A request's body: counted while it comes in, bounded in bytes, time and values, and read as strict JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from fastapi import Request

from linmu.errors import InputError
from linmu.files.strict_json import parse_json
from linmu.serving.api.errors import ApiError, busy, too_large
from linmu.serving.api.settings import ApiLimits

DEEPEST = 64  # lists and objects within each other
PARSED_IN_PLACE = 2**16  # bytes: what takes longer goes to a thread


class Bodies:
    """Reads bodies, as many bytes at one time as the limits allow."""

    def __init__(self, limits: ApiLimits):
        self._limits, self._held = limits, 0

    @asynccontextmanager
    async def json(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        """The JSON object of a body; its bytes count as held until the context ends. Raises ApiError."""
        _check_head(request)
        parts: list[bytes] = []
        try:
            try:
                with anyio.fail_after(self._limits.body_s):
                    await self._read(request, parts)
            except TimeoutError as error:
                raise ApiError(408, f"no whole body within {self._limits.body_s:g} s", code="timeout") from error
            body = [b"".join(parts)]  # given away below: the document alone stays
            size = sum(map(len, parts))
            parts.clear()
            try:
                if size <= PARSED_IN_PLACE:
                    document = self._parsed(body.pop())
                else:
                    document = await anyio.to_thread.run_sync(self._parsed, body.pop())
                yield document
            finally:
                self._held -= size
        finally:
            self._held -= sum(map(len, parts))

    async def _read(self, request: Request, parts: list[bytes]) -> None:
        """All of a body into `parts`, every byte of which is counted as held."""
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > self._limits.body_bytes:
                await self._drain(request, size)
            if self._held + len(chunk) > self._limits.bodies_bytes:
                raise busy("the bodies of all requests together are too large at this moment")
            self._held += len(chunk)
            parts.append(chunk)

    async def _drain(self, request: Request, size: int) -> None:
        """Read on for a while, so that the client, which still writes, gets to read the answer."""
        most = self._limits.body_bytes
        with anyio.move_on_after(2):
            while size < 2 * most:
                message = await request.receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    break
        raise too_large(f"the body has more than {most:,} bytes")

    def _parsed(self, body: bytes) -> dict[str, Any]:
        values = body.count(b",") + body.count(b"[") + body.count(b"{")
        if values > self._limits.json_values:  # each costs a hundred times its bytes
            raise too_large(f"the body has more than {self._limits.json_values:,} JSON values")
        try:
            document = parse_json(body, "the body")
        except InputError as error:
            raise ApiError(400, f"the body is not valid JSON: {error.got}", code="invalid_json") from error
        if not isinstance(document, dict):
            raise ApiError(400, "the body is not a JSON object", code="invalid_json")
        check_depth(document)
        return document


def check_depth(document: Any) -> None:
    """Raise ApiError for lists and objects nested more than DEEPEST deep: every reader of them recurses."""
    level = [document]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for item in level:
            inner += item.values() if isinstance(item, dict) else item
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return
    raise ApiError(400, f"the body is nested more than {DEEPEST} deep", code="invalid_json")


def _check_head(request: Request) -> None:
    """A JSON body as it is; other types of contents are what pages of other hosts may send unasked."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"Content-Type {kind!r}: expected application/json", code="unsupported_media_type")
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise ApiError(415, f"Content-Encoding {encoding!r}: send the body as it is", code="unsupported_media_type")
