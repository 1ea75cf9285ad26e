"""Bodies of requests: every field that linmu follows, its type and its range. Any other field is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Text = Annotated[str, Field(max_length=2**24)]
CONTENT = "a text or a list of parts"
Name = Annotated[str, Field(min_length=1, max_length=512)]


class Strict(BaseModel):
    """Nothing is converted, and nothing is ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Strict):
    """A text."""

    type: Literal["text"]
    text: Text


class ImageUrl(Strict):
    """A picture: a data URI, a file:// URL or a URL; `detail` "low": made to fit 512 x 512 pixels."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None


class ImagePart(Strict):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(Strict):
    """A clip, as a picture; fps: frames a second to look at."""

    url: str
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None


class VideoPart(Strict):
    """A clip in a message."""

    type: Literal["video_url"]
    video_url: VideoUrl


def _by(function: Callable[[Any], str | None], field: str, expected: str) -> Discriminator:
    """Which alternative a value is; the error type is the field that says so, "" where the value itself does."""
    return Discriminator(function, custom_error_type=f"tag:{field}", custom_error_message=expected)


def _type_of(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


def _form_of(value: Any) -> str | None:
    return "text" if isinstance(value, str) else "parts" if isinstance(value, list) else None


UserPart = Annotated[
    Annotated[TextPart, Tag("text")] | Annotated[ImagePart, Tag("image_url")] | Annotated[VideoPart, Tag("video_url")],
    _by(_type_of, "type", "'text', 'image_url' or 'video_url'"),
]
Content = Annotated[Annotated[Text, Tag("text")] | Annotated[list[TextPart], Tag("parts")], _by(_form_of, "", CONTENT)]
UserContent = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[UserPart], Tag("parts")],
    _by(_form_of, "", CONTENT),
]


class SystemMessage(Strict):
    """What the model is told beforehand; "developer" is another word for it."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(Strict):
    """A question, with pictures and clips."""

    role: Literal["user"]
    content: UserContent


class FunctionCall(Strict):
    """A function's name, and its arguments as JSON text."""

    name: Name
    arguments: Text


class ToolCall(Strict):
    """A call that the model asked for."""

    id: Name
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(Strict):
    """An earlier answer, as this server gave it."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[None], Field(max_length=0)] | None = None


class ToolMessage(Strict):
    """What a called tool gave."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Name


def _role_of(value: Any) -> str | None:
    role = value.get("role") if isinstance(value, dict) else getattr(value, "role", None)
    return "system" if role == "developer" else role if isinstance(role, str) else None


Message = Annotated[
    Annotated[SystemMessage, Tag("system")]
    | Annotated[UserMessage, Tag("user")]
    | Annotated[AssistantMessage, Tag("assistant")]
    | Annotated[ToolMessage, Tag("tool")],
    _by(_role_of, "role", "'system', 'developer', 'user', 'assistant' or 'tool'"),
]


class Function(Strict):
    """A function that the model may call; parameters: a JSON schema."""

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class Tool(Strict):
    """A tool of the chat template."""

    type: Literal["function"]
    function: Function


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    """A schema that the answer follows, strict or not; name and description are for people."""

    name: Name
    json_schema: dict[str, Any] = Field(alias="schema")
    description: Text | None = None
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("text")]
    | Annotated[JsonObjectFormat, Tag("json_object")]
    | Annotated[JsonSchemaFormat, Tag("json_schema")],
    _by(_type_of, "type", "'text', 'json_object' or 'json_schema'"),
]


class StreamOptions(Strict):
    """include_usage: a last chunk with the usage."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SamplingFields(Strict):
    """What both kinds of requests have. Fields that are null are as if they were not there."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None


class ChatRequest(SamplingFields):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    # what OpenAI's clients may say, and what is true of this server
    store: Literal[False] | None = None
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None


class CompletionRequest(SamplingFields):
    """`POST /v1/completions`: a text without a chat template, or token ids."""

    prompt: Text | Annotated[list[Any], Field(max_length=2**18)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
