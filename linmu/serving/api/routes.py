"""The paths that generate: /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from linmu.serving.api.answers import Form, Head, collected, streamed
from linmu.serving.api.desk import Desk, Maker, while_connected
from linmu.serving.api.errors import ApiError
from linmu.serving.api.formats import Formats
from linmu.serving.api.forms import ChatForm, TextForm
from linmu.serving.api.media_parts import MediaReader
from linmu.serving.api.prompts import (
    MessageMaker,
    answers_of,
    check_names,
    completion_prompt,
    new_tokens_of,
    sampling_of,
    stops_of,
)
from linmu.serving.api.requests import ChatRequest, CompletionRequest, SamplingFields
from linmu.serving.api.streams import TicketStream
from linmu.serving.api.taken import Taken
from linmu.serving.api.token_texts import TokenTexts
from linmu.serving.api.validation import checked
from linmu.serving.request import Request

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """How an answer is sent: all that stays of a request while it is answered."""

    form: Form
    answers: int
    stream: bool
    with_usage: bool
    user: str | None


class Kind(Protocol):
    """One of the two paths; prompt: the field that holds the prompt."""

    prompt: ClassVar[str]

    def reply(self, document: dict[str, Any]) -> tuple[Reply, Maker]:
        """A document checked -> how it is answered, and what makes the request; raises ApiError."""


def generating(desk: Desk) -> APIRouter:
    """Their router."""
    router = APIRouter(prefix="/v1")
    fingerprint = f"linmu-{desk.engine.bundle.model_hash[:8]}-{desk.engine.backend}"
    texts, formats = TokenTexts(desk.engine.processor), Formats(desk.engine.processor)

    async def answered(http: HttpRequest, kind: Kind) -> Response:
        reply, taken = await _taken(http, desk, kind)
        head = Head.of(reply.form, desk.name, fingerprint)
        LOG.info("%s %s user=%s", head.names["id"], http.url.path, reply.user)
        if reply.stream:
            return TicketStream(taken, streamed(taken, head, reply.answers, reply.with_usage))
        return JSONResponse(await while_connected(http, lambda: collected(taken, head, reply.answers)))

    @router.post("/chat/completions")
    async def chat(http: HttpRequest) -> Response:
        return await answered(http, Chat(desk, texts, formats))

    @router.post("/completions")
    async def complete(http: HttpRequest) -> Response:
        return await answered(http, Completion(desk, texts))

    return router


async def _taken(http: HttpRequest, desk: Desk, kind: Kind) -> tuple[Reply, Taken]:
    """A request read, checked and queued; its body is gone afterwards."""
    async with desk.bodies.json(http) as document:
        reply, make = kind.reply(document)
        return reply, await desk.submit(http, make, kind.prompt)


@dataclass(frozen=True)
class Chat:
    """A conversation to be answered."""

    desk: Desk
    texts: TokenTexts
    formats: Formats
    prompt: ClassVar[str] = "messages"

    def reply(self, document: dict[str, Any]) -> tuple[Reply, Maker]:
        """See Kind."""
        body = checked(ChatRequest, document)
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs: expected logprobs: true", param="top_logprobs", code="invalid_value")
        fields = _fields(body, self.desk, (body.top_logprobs or 0) if body.logprobs else None)
        processor, constraint = self.desk.engine.processor, self.formats.maker(body.response_format)

        def make(reader: MediaReader) -> Request:
            maker = MessageMaker(processor, reader)
            tools = maker.tools(body)
            options = {} if tools is None else {"tools": tools}
            return Request(maker.made(body), options=options, constraint=constraint, **fields)

        return _reply(body, ChatForm(self.texts if body.logprobs else None)), make


@dataclass(frozen=True)
class Completion:
    """A text to go on with."""

    desk: Desk
    texts: TokenTexts
    prompt: ClassVar[str] = "prompt"

    def reply(self, document: dict[str, Any]) -> tuple[Reply, Maker]:
        """See Kind."""
        body = checked(CompletionRequest, document)
        fields = _fields(body, self.desk, body.logprobs)

        def make(_: MediaReader) -> Request:
            prompt = completion_prompt(body, self.desk.engine.processor, self.desk.settings.limits)
            return Request(prompt, options={"raw": True}, **fields)

        return _reply(body, TextForm(None if body.logprobs is None else self.texts)), make


def _fields(body: ChatRequest | CompletionRequest, desk: Desk, logprobs: int | None) -> dict[str, Any]:
    """What both paths ask of the engine."""
    limits = desk.settings.limits
    check_names(body, desk.name)
    sampling = sampling_of(body, logprobs, desk.engine.bundle.manifest.model.vocab_size)
    count = answers_of(body, min(limits.answers, desk.engine.limits.max_sessions))
    return {"sampling": sampling, "stop": stops_of(body), "max_new_tokens": new_tokens_of(body, limits), "n": count}


def _reply(body: SamplingFields, form: Form) -> Reply:
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    return Reply(form, body.n or 1, bool(body.stream), with_usage, body.user)
