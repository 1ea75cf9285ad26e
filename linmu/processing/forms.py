"""Whether a chat template takes a message's content as a text or as a list of parts; tried, not guessed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from linmu.errors import InputError
from linmu.processing.chat import Message, TemplateCost, render

PROBE = "Zq7linmu"
_BEFORE: dict[str, list[Message]] = {"assistant": [{"role": "user", "content": PROBE[::-1]}]}
_BEHIND: dict[str, list[Message]] = {"system": [{"role": "user", "content": PROBE[::-1]}]}


def adapted(source: str, messages: Sequence[Message], variables: dict[str, str]) -> list[Message]:
    """Messages with the content that the template reads.

    Texts for a template that would print a list, parts for one that would leave a text out; all else as it is.
    """
    names = tuple(sorted(variables.items()))
    return [_adapted(message, source, names) for message in messages]


def _adapted(message: Message, source: str, variables: tuple[tuple[str, str], ...]) -> Message:
    content, role = message.get("content"), message.get("role")
    if not isinstance(content, str | list) or not isinstance(role, str):
        return message
    texts, parts = takes(source, role, variables)
    if isinstance(content, str) and parts and not texts:
        return {**message, "content": [{"type": "text", "text": content}]}
    if isinstance(content, list) and texts and not parts and all(part["type"] == "text" for part in content):
        return {**message, "content": "\n".join(part["text"] for part in content)}
    return message


@lru_cache(maxsize=64)
def takes(source: str, role: str, variables: tuple[tuple[str, str], ...]) -> tuple[bool, bool]:
    """Whether the template shows a message of this role whose content is (a text, a list of parts)."""
    part = [{"type": "text", "text": PROBE}]
    return _shows(source, role, PROBE, variables), _shows(source, role, part, variables)


def _shows(source: str, role: str, content: Any, variables: tuple[tuple[str, str], ...]) -> bool:
    for around in (True, False):  # the messages around are texts or parts, too
        other = PROBE[::-1] if around == isinstance(content, str) else [{"type": "text", "text": PROBE[::-1]}]
        before, behind = ([{**item, "content": other} for item in table.get(role, [])] for table in (_BEFORE, _BEHIND))
        try:
            text = render(source, [*before, {"role": role, "content": content}, *behind], False, dict(variables))
        except TemplateCost:
            raise
        except InputError:
            continue
        if PROBE in text and f"'{PROBE}'" not in text and f'"{PROBE}"' not in text:
            return True
    return False


@lru_cache(maxsize=64)
def takes_tools(source: str, variables: tuple[tuple[str, str], ...]) -> bool:
    """Whether the template shows the tools that it is given."""
    tool = {"type": "function", "function": {"name": PROBE, "description": PROBE, "parameters": {}}}
    for content in (PROBE[::-1], [{"type": "text", "text": PROBE[::-1]}]):
        try:
            if PROBE in render(source, [{"role": "user", "content": content}], True, dict(variables), [tool]):
                return True
        except TemplateCost:
            raise
        except InputError:
            continue
    return False
