"""From a checked request to what an engine is asked; runs in a worker thread, since it decodes pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from linmu.errors import InputError
from linmu.files.strict_json import parse_json
from linmu.processing import ModelInputs, Processor
from linmu.runtimes.sampling import Sampling
from linmu.serving.api.errors import ApiError, of_linmu, too_large
from linmu.serving.api.media_parts import MediaReader
from linmu.serving.api.requests import (
    AssistantMessage,
    ChatRequest,
    CompletionRequest,
    ImagePart,
    SamplingFields,
    SystemMessage,
    TextPart,
    ToolMessage,
    UserMessage,
    VideoPart,
)
from linmu.serving.api.settings import ApiLimits

DRAWN = ("top_p", "top_k", "min_p", "seed")  # fields that say nothing of greedy answers
COPIED = (*DRAWN, "presence_penalty", "frequency_penalty", "repetition_penalty")
MOST_STOPS = 16
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions


def sampling_of(body: SamplingFields, logprobs: int | None, vocabulary: int) -> Sampling:
    """How tokens are chosen; without a temperature greedily, or at 1 where a field asks for chance.

    vocabulary: tokens of the model, which a bias may be of.
    """
    given = {name: value for name in COPIED if (value := getattr(body, name)) is not None}
    by_chance = any(name in given for name in DRAWN) or (body.n or 1) > 1
    temperature = body.temperature if body.temperature is not None else float(by_chance)
    try:
        sampling = Sampling(temperature, logit_bias=_bias(body.logit_bias), logprobs=logprobs, **given)
        sampling.check_vocabulary(vocabulary)
        return sampling
    except InputError as error:
        raise of_linmu(error, error.what if error.what in type(body).model_fields else None) from error


def stops_of(body: SamplingFields) -> list[str]:
    """Texts that end an answer."""
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > MOST_STOPS or any(len(stop) > 1024 for stop in stops):
        raise ApiError(400, f"stop: at most {MOST_STOPS} texts of 1,024 characters", param="stop", code="invalid_value")
    return stops


def answers_of(body: SamplingFields, most: int) -> int:
    """How many answers are asked for."""
    if (body.n or 1) > most:
        raise ApiError(400, f"n: got {body.n}, expected at most {most}", param="n", code="invalid_value")
    return body.n or 1


def new_tokens_of(body: ChatRequest | CompletionRequest, limits: ApiLimits) -> int:
    """The most tokens of one answer."""
    if isinstance(body, CompletionRequest):
        name, asked = "max_tokens", COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    elif body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(
            400,
            "max_tokens: another name of max_completion_tokens, give one of them",
            param="max_tokens",
            code="invalid_value",
        )
    else:
        name = "max_tokens" if body.max_tokens is not None else "max_completion_tokens"
        asked = body.max_tokens or body.max_completion_tokens or limits.default_new_tokens
    if asked > limits.new_tokens:
        message = f"{name}: got {asked}, expected at most {limits.new_tokens:,}"
        raise ApiError(400, message, param=name, code="invalid_value")
    return asked


def check_names(body: SamplingFields, served: str) -> None:
    """Raise ApiError for another model than the one served, and for options of a stream that is none."""
    if body.model != served:
        message = f"the model {body.model[:80]!r} is not served here: expected {served!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    if body.stream_options is not None and not body.stream:
        raise ApiError(
            400, "stream_options: expected only with stream: true", param="stream_options", code="invalid_value"
        )


class MessageMaker:
    """Messages of a request in the form of Hugging Face's templates, their media read."""

    def __init__(self, processor: Processor, reader: MediaReader):
        self._processor, self._reader = processor, reader
        self._limits = reader.settings.limits
        self._characters = self._media = 0

    def made(self, body: ChatRequest) -> list[dict[str, Any]]:
        """All messages; raises ApiError naming the part that is wrong."""
        return [self._message(message, f"messages[{i}]") for i, message in enumerate(body.messages)]

    def tools(self, body: ChatRequest) -> list[dict[str, Any]] | None:
        """The tools that the template is to show; None where there are none, or the model is not to have them."""
        if body.tools is None:
            if body.tool_choice == "auto":
                raise ApiError(400, "tool_choice: expected tools", param="tool_choice", code="invalid_value")
            return None
        self._check_tools("tools")
        return None if body.tool_choice == "none" else [tool.model_dump(exclude_none=True) for tool in body.tools]

    def _message(self, message: Any, param: str) -> dict[str, Any]:
        if isinstance(message, SystemMessage):
            return {"role": "system", "content": self._content(message.content, param)}
        if isinstance(message, UserMessage):
            return {"role": "user", "content": self._content(message.content, param)}
        if isinstance(message, ToolMessage):
            self._check_tools(f"{param}.role")
            content = self._content(message.content, param)
            return {"role": "tool", "content": content, "tool_call_id": message.tool_call_id}
        assert isinstance(message, AssistantMessage)
        if message.content is None and not message.tool_calls:
            raise ApiError(
                400, f"{param}.content: expected a text", param=f"{param}.content", code="missing_required_parameter"
            )
        made: dict[str, Any] = {"role": "assistant", "content": None}
        if message.content is not None:
            made["content"] = self._content(message.content, param)
        if message.tool_calls:
            self._check_tools(f"{param}.tool_calls")
            made["tool_calls"] = [
                self._tool_call(call, f"{param}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)
            ]
        return made

    def _content(self, content: str | Sequence[Any], param: str) -> str | list[dict[str, Any]]:
        if isinstance(content, str):
            return self._counted(content)
        return [self._part(part, f"{param}.content[{i}]") for i, part in enumerate(content)]

    def _part(self, part: TextPart | ImagePart | VideoPart, param: str) -> dict[str, Any]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": self._counted(part.text)}
        self._media += 1
        if self._media > self._limits.media:
            raise too_large(f"more than {self._limits.media} pictures and clips", param)
        if isinstance(part, ImagePart):
            return self._reader.image_part(part.image_url, f"{param}.image_url")
        return self._reader.video_part(part.video_url, f"{param}.video_url")

    def _tool_call(self, call: Any, param: str) -> dict[str, Any]:
        """A call with its arguments as an object, which templates write as they like."""
        try:
            arguments = parse_json(self._counted(call.function.arguments), "arguments")
        except InputError as error:
            raise of_linmu(error, f"{param}.function.arguments") from error
        return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}

    def _counted(self, text: str) -> str:
        self._characters += len(text)
        if self._characters > self._limits.text_characters:
            raise too_large(f"the texts have more than {self._limits.text_characters:,} characters", "messages")
        return text

    def _check_tools(self, param: str) -> None:
        if not self._processor.takes_tools:
            message = f"{param}: the chat template of this model knows no tools"
            raise ApiError(400, message, param=param, code="unsupported_parameter")


def completion_prompt(body: CompletionRequest, processor: Processor, limits: ApiLimits) -> str | ModelInputs:
    """The text of a completion, or its token ids; raises ApiError."""
    prompt = body.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        if len(prompt) > limits.text_characters:
            raise too_large(f"the prompt has more than {limits.text_characters:,} characters", "prompt")
        return prompt
    ids = [item for item in prompt if type(item) is int]
    if not ids or len(ids) < len(prompt) or min(ids) < 0:
        raise ApiError(400, "prompt: expected one text, or token ids", param="prompt", code="invalid_value")
    try:
        array = np.array(ids, np.int64)
        processor.check_ids(array)
    except InputError as error:
        raise of_linmu(error, "prompt") from error
    return ModelInputs(array, "")


def _bias(given: dict[str, float] | None) -> dict[int, float]:
    bias = {}
    for key, value in (given or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            message = f"logit_bias: got the key {key[:40]!r}, expected token ids"
            raise ApiError(400, message, param="logit_bias", code="invalid_value")
        bias[int(key)] = value
    return bias
