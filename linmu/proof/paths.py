"""A way through a backend whose rounded inputs are shown: what exposers give and a reference follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from linmu.proof.followed import Seen

FILES, SESSION = "graph files", "session"


@dataclass(frozen=True)
class Path:
    """A way through a backend: the Runner that shows its inputs, how it shows them, and the same as it really runs.

    A backend's runner takes states of its own kind only, so that none is a Runner for type checkers.
    """

    name: str
    shown: Any
    seen: Callable[[], Seen]
    bare: Any = None
