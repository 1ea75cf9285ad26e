"""JSON of the files that linmu itself writes: read so that two readers cannot understand two things.

Refused: keys that occur twice, NaN and infinities (also as 1e999), half surrogates, anything but UTF-8.
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

from linmu.errors import InputError
from linmu.files.regular import regular_file


def parse_json(text: str | bytes, where: str, error: type[InputError] = InputError) -> Any:
    """The document `text`; raises `error` that names `where`."""
    try:
        plain = text.decode("utf-8") if isinstance(text, bytes) else text
        document = json.loads(
            plain, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole
        )
        if "\\ud" in plain.lower():  # escapes of half a character: no text that could be written anywhere
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as problem:
        raise error(f"{where} is not valid JSON", got=problem, fix="copy it again, or make it anew") from problem
    return document


def read_json(path: Path, what: str, error: type[InputError] = InputError) -> Any:
    """The document in a file; raises `error` that names the file (and calls it `what` when it is missing)."""
    try:
        content = regular_file(path, what).read_bytes()
    except InputError as problem:
        raise error(problem.what, got=problem.got, expected=problem.expected) from problem
    except OSError as problem:
        raise error(f"cannot read {path}", got=problem.strerror) from problem
    return parse_json(content, str(path), error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key that occurs twice")
    return document


def _no_constant(text: str) -> Any:
    raise ValueError(f"the number {text}")


def _finite(text: str) -> float:
    if not isfinite(value := float(text)):
        raise ValueError(f"the number {text:.20}")
    return value


def _whole(text: str) -> int:
    if len(text) > 20:  # 64 bits have 19 digits: what is longer overflows somewhere later
        raise ValueError(f"the number {text:.20}...")
    return int(text)
