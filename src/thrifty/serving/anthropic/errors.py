"""Errors of /v1/messages in Anthropic's own shape, whoever in the server raises them."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHS = ("/v1/messages",)

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class AnthropicErrorDetails(BaseModel):
    """What went wrong."""

    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """The body of every error here."""

    type: Literal["error"]
    error: AnthropicErrorDetails
    request_id: str | None


DOCUMENTED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": AnthropicErrorBody},
    "5XX": {"model": AnthropicErrorBody},
}
"""As the OpenAPI document says it of these endpoints."""


def error_body(status: int, told: dict[str, Any]) -> dict[str, Any]:
    """An error of this status. told: the body that OpenAI's clients would get."""
    kind = KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": told["error"]["message"]}, "request_id": None}


class AnthropicErrors:
    """Turns the errors of these paths on their way out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PATHS):
            return await self._app(scope, receive, send)
        held: list[Message] = []

        async def turn(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                held.append(message)
            elif held:
                await self._send(held[0], message, send)
            else:
                await send(message)

        return await self._app(scope, receive, turn)

    @staticmethod
    async def _send(start: Message, message: Message, send: Send) -> None:
        """Errors come in one piece (errors.response)."""
        body = json.dumps(error_body(start["status"], json.loads(message["body"]))).encode()
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        start["headers"] = [*headers, (b"content-length", str(len(body)).encode())]
        await send(start)
        await send({**message, "body": body})
