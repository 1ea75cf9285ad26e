"""The application: one engine behind OpenAI's paths."""

from __future__ import annotations

import time

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from linmu.serving.api.about import telling
from linmu.serving.api.desk import Desk
from linmu.serving.api.errors import add_handlers
from linmu.serving.api.gate import Gate
from linmu.serving.api.metrics import EngineMetrics, HttpMetrics
from linmu.serving.api.routes import generating
from linmu.serving.api.settings import ApiSettings
from linmu.serving.engine import Engine
from linmu.version import __version__


def make_app(engine: Engine, settings: ApiSettings) -> FastAPI:
    """An ASGI application on an engine, which stays the caller's to close; `app.state.desk` is its Desk."""
    app = FastAPI(
        title="linmu", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    registry = CollectorRegistry()  # of this app alone: several may live in one process
    registry.register(EngineMetrics(engine))
    app.state.desk = desk = Desk(engine, settings)
    add_handlers(app)
    app.include_router(generating(desk))
    app.include_router(telling(desk, registry, int(time.time())))
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(HttpMetrics, registry=registry)  # outermost: it sees what the gate refuses
    return app
