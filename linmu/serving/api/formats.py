"""`response_format`: what an answer is held to while it is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from linmu.processing import Processor
from linmu.serving.api.requests import JsonObjectFormat, JsonSchemaFormat, TextFormat


def constraint_maker(
    wanted: TextFormat | JsonObjectFormat | JsonSchemaFormat | None, processor: Processor
) -> Callable[[], Any]:
    """What makes the engine's constraint of a response format, in the thread that it is called in."""
    return lambda: None
