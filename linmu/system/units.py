"""Numbers with their units, as people read them."""

from __future__ import annotations

import re

from linmu.errors import InputError

_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0}


def size(count: float) -> str:
    """A number of bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """A time in the one or two units that matter: "42 s", "12 min", "1 h 12 min", "3 d 4 h"."""
    if seconds < 60:
        return f"{max(seconds, 0):.0f} s" if seconds < 59.5 else "1 min"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def seconds_of(text: str, what: str) -> float:
    """Seconds of a time as people write it: "5", "5s", "500ms", "10m", "1.5h"; InputError, naming `what`, otherwise."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([a-z]*)", text.strip())
    if match is None or match[2] not in _SECONDS:
        raise InputError(f"a time ({what})", got=repr(text)[:40], expected="seconds, or a number with ms, s, m or h")
    return float(match[1]) * _SECONDS[match[2]]
