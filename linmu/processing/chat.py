"""Chat messages and templates: the text that transformers' `apply_chat_template(tokenize=False)` gives."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext

from linmu.errors import InputError
from linmu.processing.sandbox import LimitedEnvironment, TemplateLimit, run
from linmu.processing.sources import canonical_part

Message = dict[str, Any]
PART_TYPES = ("text", "image", "video", "image_url", "video_url")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")

# transformers renders SmolVLM conversations that hold a video with this template, whatever the model's own says
SMOLVLM_VIDEO_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks training targets; for a prompt its body is plain output."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """A scope around the body (so that assignments inside stay inside)."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


# what a template's own mistakes raise
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class TemplateCost(InputError):
    """A template that goes beyond the limits of linmu.processing.sandbox."""


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 100 or re.search(r"%[^a-zA-Z%]*\d{3}", pattern):
        raise TemplateLimit(f"the date format {pattern[:40]!r}")
    return datetime.now().strftime(pattern)


@lru_cache(maxsize=8)
def compile_template(source: str) -> jinja2.Template:
    """A template in a sandbox with limits (templates come with models: untrusted); InputError on bad syntax."""
    environment = LimitedEnvironment([_GenerationTag, jinja2.ext.loopcontrols])
    environment.add_filter("tojson", _tojson)
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    try:
        return environment.from_string(source)
    except _TEMPLATE_ERRORS as error:
        raise InputError("the chat template cannot be compiled", got=error, fix="repair chat_template.jinja") from error


def plain(value: Any) -> Any:
    """`value` as plain JSON types; anything else (an image, an array) becomes a harmless string naming its type."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _for_template(message: Message) -> Message:
    """One message without None values, its reasoning under the names that templates read."""
    data = {key: plain(value) for key, value in message.items() if value is not None}
    reasoning = next((data[key] for key in REASONING_KEYS if key in data), None)
    return data if reasoning is None else {"thinking": reasoning, **data, "reasoning_content": reasoning}


def render(
    source: str,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    variables: Mapping[str, str],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The chat text of `messages`; InputError when the template refuses them, TemplateCost beyond the limits."""
    template = compile_template(source)
    builtins = {
        "messages": [_for_template(message) for message in messages],
        "tools": None if tools is None else [plain(tool) for tool in tools],
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        return run(template, {**builtins, **variables})
    except TemplateLimit as error:
        raise TemplateCost(
            "the chat template goes beyond linmu's limits", got=error, fix="repair chat_template.jinja, or use raw=True"
        ) from error
    except _TEMPLATE_ERRORS as error:
        raise InputError(
            "the chat template refuses these messages", got=error, fix="change the messages, or use raw=True"
        ) from error


def check_messages(messages: Any) -> list[Message]:
    """Messages in the Hugging Face or OpenAI form, their parts canonical; InputError on anything else."""
    if not isinstance(messages, list) or not messages:
        raise InputError("prompt", got=repr(messages)[:60], expected="a text or a non-empty list of messages")
    return [_checked_message(message) for message in messages]


def _checked_message(message: Any) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InputError("a message", got=repr(message)[:60], expected='{"role": ..., "content": ...}')
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [_checked_part(part) for part in content]}
    if not isinstance(content, str) and content is not None:
        raise InputError("content of a message", got=type(content).__name__, expected="a text or a list of parts")
    return message


def _checked_part(part: Any) -> dict[str, Any]:
    if not isinstance(part, dict) or part.get("type") not in PART_TYPES:
        raise InputError("a part of a message", got=repr(part)[:60], expected='"type": ' + ", ".join(PART_TYPES))
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        raise InputError("a text part of a message", got=repr(part)[:60], expected='a "text" string')
    return canonical_part(part)


def has_text(messages: Sequence[Message]) -> bool:
    """Whether any message says anything."""
    for message in messages:
        content = message.get("content") or ""
        texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        if any(text.strip() for text in texts):
            return True
    return False


def user_message(text: str, images: int, videos: int, text_only: bool) -> Message:
    """One user message: images, videos, then the text; a plain string for text-only families."""
    if text_only:
        return {"role": "user", "content": text}
    media = [{"type": "image"}] * images + [{"type": "video"}] * videos
    return {"role": "user", "content": [*media, {"type": "text", "text": text}]}
