"""The paths that say what is here: /v1/models, /health, /metrics, and the page."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from linmu.serving.api.desk import Desk
from linmu.serving.api.errors import ApiError
from linmu.version import __version__

# Everything is in the page itself: no other host is asked for anything, and nobody puts it into a frame.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data: blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


def telling(desk: Desk, registry: CollectorRegistry, started_s: int) -> APIRouter:
    """Their router; started_s: when the server began, in seconds since 1970."""
    router = APIRouter()
    model = {
        "id": desk.name,
        "object": "model",
        "created": started_s,
        "owned_by": "linmu",
        "max_model_len": context_tokens(desk),
    }

    @router.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    @router.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        if name != desk.name:
            message = f"the model {name[:80]!r} is not served here: expected {desk.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return JSONResponse(model)

    @router.get("/health")
    async def health() -> Response:
        state = "closing" if desk.closing else "ok"
        return JSONResponse({"status": state, **facts(desk)}, 503 if desk.closing else 200)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @router.get("/")
    async def page() -> Response:
        text = files("linmu.serving").joinpath("page/index.html").read_text("utf-8")
        return HTMLResponse(text, headers=PAGE_HEADERS)

    return router


def context_tokens(desk: Desk) -> int | None:
    """Positions that the model was made for; a conversation may go on beyond them."""
    positions = desk.engine.bundle.manifest.generation.get("max_position_embeddings")
    return None if positions is None else int(positions)


def facts(desk: Desk) -> dict[str, Any]:
    """What /health says: the model, what it can do, and how busy it is."""
    engine = desk.engine
    manifest, settings, counters = engine.bundle.manifest, engine.processor.settings, engine.counters()
    return {
        "version": __version__,
        "model": desk.name,
        "family": manifest.model.family,
        "backend": engine.backend,
        "context_tokens": context_tokens(desk),
        "state_bytes": manifest.state_bytes,
        "capabilities": {
            "images": settings.image is not None,
            "videos": settings.video is not None,
            "tools": engine.processor.takes_tools,
            "chat_template": engine.processor.chat_template is not None,
            "json_schema": True,
            "local_media": desk.settings.local_media is not None,
            "urls": desk.settings.allow_urls,
        },
        "sessions": {
            "reading": counters.reading,
            "decoding": counters.decoding,
            "most": engine.limits.max_sessions,
            "queued": counters.queued,
            "most_queued": engine.limits.max_queued,
        },
    }
