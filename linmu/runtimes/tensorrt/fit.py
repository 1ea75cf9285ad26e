"""Whether a call's sizes lie inside the ranges that an engine was built for."""

from __future__ import annotations

from collections.abc import Mapping

from linmu.errors import InputError
from linmu.runtimes.shape_ranges import Ranges

# What the user can do about a dimension that is too large.
REMEDIES = {
    "tokens": "linmu build --max-tokens with a larger number, or smaller pictures",
    "patches": "linmu build --max-tokens with a larger number, or smaller pictures",
}


def check_ranges(graph: str, dimensions: Mapping[str, int], ranges: Ranges) -> None:
    """Raise InputError naming the first dimension that the engine was not built for."""
    for name, size in dimensions.items():
        if name in ranges and not ranges[name].holds(size):
            raise InputError(
                f"this prompt needs {name} = {size} in the {graph} engine",
                got=size,
                expected=f"{ranges[name].min} to {ranges[name].max}",
                fix=REMEDIES.get(name, REMEDIES["tokens"]),
            )
