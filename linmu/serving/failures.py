"""The one place that catches whatever a request raises: it must end that request, and no other one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from linmu.errors import LinmuError

T = TypeVar("T")
LOG = logging.getLogger(__name__)


def attempt(function: Callable[[], T], failed: Callable[[Exception], None]) -> T | None:
    """Call a function -> its result; an exception goes to `failed`, and the result is None."""
    try:
        return function()
    except Exception as error:
        failed(error)
        return None


def shown(error: Exception) -> LinmuError:
    """What a client may see of an error; one that is not linmu's own is logged with its traceback."""
    if isinstance(error, LinmuError):
        return error
    LOG.error("a request failed", exc_info=error)
    return LinmuError("the request failed", got=type(error).__name__)
