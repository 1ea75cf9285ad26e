"""Real servers on free ports, and what tests send to them."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai

from linmu.processing.known_media import KnownMedia
from linmu.serving.api.server import Server, bound_socket, url_of
from linmu.serving.api.settings import ApiSettings
from linmu.serving.engine import Engine
from linmu.serving.kept_reader import kept_reader
from linmu.serving.prefix_cache import PrefixCache
from linmu.serving.request import Limits
from tests.tiny import tiny_image

NAME = "tiny"


@dataclass(frozen=True)
class Served:
    """A server that runs: its engine and address, OpenAI's client for it, and a plain one."""

    engine: Engine
    server: Server
    url: str
    openai: openai.OpenAI
    http: httpx.Client

    def chat(self, text: str = "hello", **fields: Any) -> Any:
        """One chat completion of one message."""
        fields = {"max_completion_tokens": 6, **fields}
        messages = fields.pop("messages", [{"role": "user", "content": text}])
        return self.openai.chat.completions.create(model=NAME, messages=messages, **fields)

    def post(self, document: Any, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
        """A body as it is."""
        return self.http.post(path, json=document, **options)

    def error(self, document: Any, path: str = "/v1/chat/completions", status: int = 400) -> dict[str, Any]:
        """The error object that a body is answered with."""
        response = self.post(document, path)
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and "Traceback" not in response.text
        return error


@contextmanager
def served(
    bundle: Path, places: Limits | None = None, key: str = "-", cache: PrefixCache | None = None, **settings: Any
) -> Iterator[Served]:
    """A bundle served by a thread of this process; cache: of kept states."""
    known = None if cache is None else KnownMedia()
    with (
        bound_socket("127.0.0.1", 0) as listening,
        Engine(bundle, "onnxruntime", 1, places, kept_reader(cache, 1), known) as engine,
    ):
        started = threading.Event()
        server = Server(engine, replace(ApiSettings(NAME), **settings), started.set)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        assert started.wait(30)
        url = url_of(listening)
        headers = {"Authorization": f"Bearer {key}"}
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)
        try:
            with httpx.Client(base_url=url, headers=headers, timeout=60) as http, client:
                yield Served(engine, server, url, client, http)
        finally:
            server.stop()
            thread.join(60)
            assert not thread.is_alive()


def conversation(text: str = "hello", **fields: Any) -> dict[str, Any]:
    """A body of a chat."""
    return {"model": NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}


def png(seed: int = 0, size: tuple[int, int] = (40, 30)) -> bytes:
    """A small picture file."""
    file = io.BytesIO()
    tiny_image(seed).resize(size).save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture_message(url: str, text: str = "what is this?", **image: Any) -> list[dict[str, Any]]:
    """Messages with one picture."""
    part = {"type": "image_url", "image_url": {"url": url, **image}}
    return [{"role": "user", "content": [{"type": "text", "text": text}, part]}]
