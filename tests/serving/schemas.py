"""Random JSON schemas, and a checker of their instances that shares nothing with what enforces them."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from random import Random

WORDS = ("a", "id", "ok?", "naïve", "世界", 'q"\\', "x y", "\n", "😀")
PATTERNS = (r"^[a-c]{1,4}$", r"^\d{4}-\d{2}$", r"^(yes|no)$", r"b", r"^[A-Z][a-z]{0,3}é?$")

BOUNDS = {
    "minimum": Decimal.__ge__,
    "maximum": Decimal.__le__,
    "exclusiveMinimum": Decimal.__gt__,
    "exclusiveMaximum": Decimal.__lt__,
}


def random_schema(random: Random, depth: int = 3) -> dict:
    """A schema whose instances are mostly short; at the top it may define what it refers to."""
    schema = _node(random, depth)
    if random.random() < 0.2:
        schema = {"$defs": {"node": _leaf(random)}, "type": "array", "maxItems": 3, "items": {"$ref": "#/$defs/node"}}
    if random.random() < 0.1:  # recursive
        child = {"anyOf": [{"type": "null"}, {"$ref": "#"}]}
        schema = {"type": "object", "properties": {"v": _leaf(random), "next": child}, "required": ["v", "next"]}
        schema["additionalProperties"] = False
    return schema


def _node(random: Random, depth: int) -> dict:
    kind = random.choice(("leaf", "object", "object", "array", "anyOf", "tuple")) if depth else "leaf"
    if kind == "object":
        names = random.sample(WORDS, random.randint(0, 4))
        schema: dict = {"type": "object", "properties": {name: _node(random, depth - 1) for name in names}}
        if names and random.random() < 0.8:
            schema["required"] = random.sample(names, random.randint(1, len(names)))
        extra = random.choice((False, False, False, {"type": "null"}))
        return {**schema, "additionalProperties": extra}
    if kind == "array":
        low = random.randint(0, 2)
        return {"type": "array", "items": _node(random, depth - 1), "minItems": low, "maxItems": low + 2}
    if kind == "tuple":
        parts = [_node(random, depth - 1) for _ in range(random.randint(1, 3))]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
    if kind == "anyOf":
        return {"anyOf": [_node(random, depth - 1) for _ in range(random.randint(1, 3))]}
    return _leaf(random)


def _leaf(random: Random) -> dict:
    low = random.randint(-50, 50)
    return random.choice(
        (
            {"type": "boolean"},
            {"type": "null"},
            {"type": "integer"},
            {"type": "number"},
            {"type": "integer", "minimum": low, "maximum": low + random.randint(0, 1000)},
            {"type": "integer", "exclusiveMinimum": low, "multipleOf": random.randint(1, 7)},
            {"type": "number", "exclusiveMinimum": low, "maximum": low + 1.5},
            {"type": "number", "minimum": low + 0.25, "exclusiveMaximum": low + 0.5},
            {"type": "string", "maxLength": random.randint(0, 6)},
            {"type": "string", "minLength": random.randint(0, 4), "maxLength": random.randint(4, 8)},
            {"type": "string", "pattern": random.choice(PATTERNS), "maxLength": 9},
            {"enum": random.sample([*WORDS, 1, 2.5, None, True, [1], {"k": []}], random.randint(1, 4))},
            {"const": random.choice(WORDS)},
            {"type": ["integer", "null"]},
        )
    )


def read(text: str):
    """A JSON text with its numbers as they are written, exponents within +-1000."""
    return json.loads(text, parse_float=_number, parse_constant=lambda name: 1 / 0)


def _number(text: str) -> Decimal:
    mantissa, _, exponent = text.lower().partition("e")
    return Decimal(mantissa).scaleb(max(-1000, min(1000, int(exponent or 0))))


def is_valid(value, schema, root=None) -> bool:
    """Whether a value is an instance, of the keywords that `random_schema` uses."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].removeprefix("#").strip("/").split("/"):
            target = target[part] if part else target
        return is_valid(value, target, root)
    if "anyOf" in schema:
        return any(is_valid(value, option, root) for option in schema["anyOf"])
    kinds = schema.get("type", [])
    if kinds and not any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if "enum" in schema and not any(_same(value, item) for item in schema["enum"]):
        return False
    if "const" in schema and not _same(value, schema["const"]):
        return False
    return _limits(value, schema) and _parts(value, schema, root)


def _limits(value, schema) -> bool:
    if isinstance(value, str):
        low, high = schema.get("minLength", 0), schema.get("maxLength", 10**9)
        return low <= len(value) <= high and bool(re.search(schema.get("pattern", ""), value))
    if isinstance(value, list):
        return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9)
    if _is(value, "number"):
        bounds = {name: Decimal(str(schema[name])) for name in BOUNDS if name in schema}
        return all(BOUNDS[name](Decimal(value), bound) for name, bound in bounds.items()) and (
            "multipleOf" not in schema or not value % schema["multipleOf"]
        )
    return True


def _parts(value, schema, root) -> bool:
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        return all(is_valid(item, first[i] if i < len(first) else rest, root) for i, item in enumerate(value))
    if isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
        named = all(is_valid(item, known.get(name, rest), root) for name, item in value.items())
        return named and set(schema.get("required", ())) <= set(value)
    return True


def _whole(value) -> bool:
    return isinstance(value, int) or (value.is_finite() and value == value.to_integral_value())


def _is(value, kind: str) -> bool:
    number = isinstance(value, int | Decimal) and not isinstance(value, bool)
    if kind in ("number", "integer"):
        return number and (kind == "number" or _whole(value))
    return isinstance(value, {"boolean": bool, "null": type(None), "string": str, "array": list, "object": dict}[kind])


def _same(value, other) -> bool:
    return type(value) is type(other) and value == other or (isinstance(other, float) and value == Decimal(str(other)))
