"""What a JSON schema may hold, beside what llguidance refuses itself: sizes, and bounds that it does not keep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from linmu.errors import InputError

MOST_CHARACTERS = 1 << 18  # of a schema as JSON, of a pattern, of all choices
MOST_OPTIONAL = 500  # properties of one object that may be left out: each may come behind any other
DEEPEST = 100  # objects and lists within each other
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def schema_text(schema: Any) -> str:
    """A schema as JSON; raises InputError where it is none, too large, or asks for what cannot be held to."""
    what = "the JSON schema"
    if not isinstance(schema, Mapping | bool):
        raise InputError(what, got=repr(schema)[:60], expected="a JSON object")
    nodes = list(_nodes(schema))
    for node in nodes:
        if "x-guidance" in node:
            raise InputError(f"{what} holds x-guidance", fix="leave it out")
        properties, required = node.get("properties"), node.get("required")
        if isinstance(properties, Mapping):
            fixed = required if isinstance(required, list) else []
            count = len(properties) - sum(isinstance(name, str) and name in properties for name in fixed)
            if count > MOST_OPTIONAL:
                raise InputError(
                    f"{what} has too many optional properties",
                    got=f"{count} in one object",
                    expected=f"at most {MOST_OPTIONAL}",
                    fix="name properties in `required`",
                )
    _check_bounds(nodes)
    if _has_large_number(schema):
        raise InputError(f"{what} holds a number", got="one beyond 63 bits", fix="use a smaller one")
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(what, got=error, expected="a JSON object") from error
    check_size(what, text)
    return text


def check_size(what: str, text: Any) -> None:
    """Raise InputError for what is no text, or one that is too long."""
    if not isinstance(text, str):
        raise InputError(what, got=repr(text)[:60], expected="a text")
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"{what} is too large", got=f"{len(text)} characters", expected=f"at most {MOST_CHARACTERS}")


def _nodes(schema: Any) -> Iterator[Mapping[str, Any]]:
    """All objects of a document; raises InputError when they are nested too deep (or in a circle)."""
    level = [schema]
    for _ in range(DEEPEST + 1):
        if not level:
            return
        inner: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                yield value
                inner += value.values()
            elif isinstance(value, list | tuple):
                inner += value
        level = [value for value in inner if isinstance(value, Mapping | list | tuple)]
    raise InputError("the JSON schema is nested too deep", expected=f"at most {DEEPEST} objects and lists")


def _check_bounds(nodes: list[Mapping[str, Any]]) -> None:
    """Refuse exclusive whole bounds of numbers that lie within 1 of the other bound: llguidance lets them in (1.9)."""
    combined = any("allOf" in node or ("$ref" in node and any(bound in node for bound in BOUNDS)) for node in nodes)
    for node in nodes:
        if node.get("type") == "integer":
            continue
        bounds = {name: node[name] for name in BOUNDS if _is_number(node.get(name))}
        exclusive = [name for name in ("exclusiveMinimum", "exclusiveMaximum") if name in bounds]
        whole = [name for name in exclusive if bounds[name] == int(bounds[name])]
        near = len(bounds) > 1 and max(bounds.values()) - min(bounds.values()) < 1
        if whole and (near or combined):
            raise InputError(
                f"the JSON schema: {whole[0]} of a number cannot be held to "
                + ("within 1 of the other bound" if near else "in a schema that is combined of several"),
                got=bounds[whole[0]],
                fix="use minimum or maximum, or the type integer",
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _has_large_number(schema: Any) -> bool:
    """Whether a number's opposite does not fit into 64 bits: llguidance 1.9 recurses without end on -2^63."""
    waiting = [schema]
    while waiting:
        item = waiting.pop()
        if isinstance(item, int | float) and not -(2**63) < item < 2**63:
            return True
        waiting += item.values() if isinstance(item, Mapping) else item if isinstance(item, list | tuple) else ()
    return False
