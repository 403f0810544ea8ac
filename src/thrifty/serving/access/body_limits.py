"""Bodies that are too large, or never end."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thrifty.serving.errors import RequestError, response
from thrifty.serving.settings import ServerSettings


class BodyLimits:
    """Refuses a body of more bytes than the operator allows, or of which not all came in time."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._most = settings.body_bytes
        self._seconds = settings.body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            body = await self._read(scope, receive)
        except RequestError as error:
            return await response(str(error), error.status, code=error.code)(scope, receive, send)
        if body is None:
            return None  # it hung up
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        return await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None where the client hung up. Raises RequestError (408, 413)."""
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > self._most:
            raise self._too_large(int(told))
        parts, size, until = [], 0, time.monotonic() + self._seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except TimeoutError as error:
                raise RequestError(
                    f"the body did not come within {self._seconds:g} s; send it at once", 408, code="timeout"
                ) from error
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._most:
                raise self._too_large(size)
            if not message.get("more_body"):
                return b"".join(parts)

    def _too_large(self, size: int) -> RequestError:
        return RequestError(
            f"the body has {size} bytes or more; this server takes at most {self._most}", 413, code="body_too_large"
        )
