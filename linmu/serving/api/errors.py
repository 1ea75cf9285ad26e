"""Errors as OpenAI's clients read them: a status and `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from math import ceil
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from linmu.errors import InputError, LinmuError, MissingComponentError
from linmu.serving.request import EngineClosed, PromptTooLong, QueueFull

CLIENT_GONE = 499  # nobody reads it; access logs do
CODES = {404: "not_found", 405: "method_not_allowed"}


class ApiError(Exception):
    """An answer with an error: HTTP status, what to say, and the field (`param`) that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        error = {"message": self.message, "type": _kind(self.status), "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def too_large(message: str, param: str | None = None) -> ApiError:
    """What does not fit within the server's limits: 413."""
    return ApiError(413, message, param=param, code="too_large")


def busy(message: str, retry_after_s: float = 1.0) -> ApiError:
    """No place at this moment: 429 with Retry-After."""
    headers = {"Retry-After": str(max(1, ceil(retry_after_s)))}
    return ApiError(429, message, code="queue_full", headers=headers)


def closing() -> ApiError:
    """The server ends: 503."""
    return ApiError(503, str(EngineClosed()), code="closing", headers={"Retry-After": "5"})


def of_linmu(error: LinmuError, param: str | None = None) -> ApiError:
    """The answer to an error of linmu; `param`: the field that it is about, where that is known."""
    if isinstance(error, QueueFull):
        return busy(str(error), error.retry_after_s)
    if isinstance(error, EngineClosed):
        return closing()
    if isinstance(error, PromptTooLong):
        return ApiError(413, str(error), param=param, code="context_length_exceeded")
    if isinstance(error, MissingComponentError):
        return ApiError(501, str(error), param=param, code="not_installed")
    if isinstance(error, InputError):
        return ApiError(400, str(error), param=param, code="invalid_value")
    return ApiError(500, str(error), code="server_error")


def add_handlers(app: FastAPI) -> None:
    """Every error of the app in one shape; a fault of the server says nothing of its inside."""

    @app.exception_handler(ApiError)
    async def _api(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(LinmuError)
    async def _linmu(_: Request, error: LinmuError) -> Response:
        return of_linmu(error).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path}"
        message = {404: f"no such path: {what}", 405: f"{what} is not allowed"}.get(error.status_code, error.detail)
        code, headers = CODES.get(error.status_code), dict(error.headers or {})
        return ApiError(error.status_code, message, code=code, headers=headers).response()

    @app.exception_handler(ClientDisconnect)
    async def _gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(Exception)
    async def _fault(_: Request, __: Exception) -> Response:
        return ApiError(500, "the server failed; its log says why", code="server_error").response()


def _kind(status: int) -> str:
    if status in (401, 403):
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
