"""From a JSON document to a request: the first fault, said with the path of its field as `param`."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from linmu.serving.api.errors import ApiError
from linmu.serving.api.requests import Strict

Model = TypeVar("Model", bound=Strict)
SHOWN = 60  # characters of a value


def checked(model: type[Model], document: dict[str, Any]) -> Model:
    """The request of a document; raises ApiError that names the field."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        faults = [(path_of(problem["loc"], document), problem) for problem in problems]
        unknown = [item for item in faults if item[1]["type"] == "extra_forbidden"]
        path, problem = max(unknown or faults, key=lambda item: len(item[0]))
        kind, _, field = problem["type"].partition(":")
        if kind == "tag" and field and isinstance(problem["input"], dict):
            path, problem = (*path, field), {**problem, "input": problem["input"].get(field)}
        raise _said(path, problem) from None


def path_of(place: tuple[Any, ...], document: Any) -> tuple[Any, ...]:
    """Pydantic's place of a fault without the names of alternatives, which no client knows."""
    path: list[Any] = []
    value = document
    for index, key in enumerate(place):
        last = index == len(place) - 1
        if isinstance(value, dict) and (key in value or (last and isinstance(key, str))):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            continue
        path.append(key)
    return tuple(path)


def named(path: tuple[Any, ...]) -> str:
    """A path as OpenAI writes it: messages[0].content[1].image_url."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
    return text if len(text) <= 4 * SHOWN else text[: 4 * SHOWN] + "..."


def _said(path: tuple[Any, ...], problem: Any) -> ApiError:
    param = named(path) or None
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"unknown or unsupported field: {param}", param=param, code="unknown_parameter")
    if problem["type"] == "missing":
        return ApiError(400, f"missing field: {param}", param=param, code="missing_required_parameter")
    got = repr(problem.get("input"))
    got = got if len(got) <= SHOWN else got[:SHOWN] + "..."
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    message = f"{param or 'the body'}: got {got}, expected {expected}"
    return ApiError(400, message, param=param, code="invalid_value")
