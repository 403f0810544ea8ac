"""What the front sends a client of a replica's answer, so that another replica can take over as long as possible."""

from __future__ import annotations

import json
import math

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from thrifty.serving.cluster.stream_events import error_event, is_keep_alive, is_opening
from thrifty.serving.errors import RequestError, described


class Relay:
    """One client's answer. scope, receive, send: of its request.

    The head of an answer, and events that say nothing of it, are held until the first word comes. Until then the answer
    has not begun, and after `again` another replica may give it. Comments that keep a stream open are sent at once:
    what follows them may come from any replica.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._head: Message | None = None
        self._sent_head: Message | None = None
        self._held: list[Message] = []
        self._last = b""
        self.begun = False
        self.done = False

    def again(self) -> None:
        """Forget what is held: the next messages come from another replica."""
        self._head = None
        self._held.clear()

    async def push(self, message: Message) -> None:
        """The replica's next message."""
        if message["type"] == "http.response.start":
            self._head = message
        elif self._head is not None and not self.done:
            await self._push_body(self._head, message)

    async def _push_body(self, head: Message, message: Message) -> None:
        body, is_last = message.get("body", b""), not message.get("more_body", False)
        if self._sent_head is not None and not self.begun and head["status"] != 200:
            return await self.fail(_refusal(head["status"], body))
        if not self.begun and not is_last and is_stream(head):
            if is_keep_alive(body):
                await self._send_head(head)
                return await self._send(message)
            if is_opening(body):
                return self._held.append(message)
        await self._send_head(head)
        for held in self._held:
            await self._send(held)
        self._held.clear()
        self.begun, self.done = True, is_last
        self._last = body or self._last
        return await self._send(message)

    async def fail(self, error: Exception) -> None:
        """End the answer: by an error's status, or by an event of the endpoint's form where the stream is open."""
        if self.done:
            return
        self.done = True
        if self._sent_head is None:
            status, told = described(error)
            retry = getattr(error, "retry_after", None)
            headers = {} if retry is None else {"Retry-After": str(max(1, math.ceil(retry)))}
            return await JSONResponse(told, status, headers)(self._scope, self._receive, self._send)
        if not is_stream(self._sent_head):
            raise error  # half of a body cannot be mended: the connection is closed
        event = error_event(self._scope["path"], error, self._last)
        return await self._send({"type": "http.response.body", "body": event, "more_body": False})

    async def _send_head(self, head: Message) -> None:
        if self._sent_head is None:
            self._sent_head = head
            await self._send(head)


def is_stream(head: Message) -> bool:
    """Whether an answer is a stream of events."""
    kinds = [value for name, value in head["headers"] if name.lower() == b"content-type"]
    return any(kind.startswith(b"text/event-stream") for kind in kinds)


def _refusal(status: int, body: bytes) -> RequestError:
    """What a replica refused after another one had kept the stream open."""
    try:
        told = json.loads(body)["error"]
        return RequestError(told["message"], status, told.get("param"), told.get("code"))
    except (ValueError, KeyError, TypeError):
        return RequestError("the server failed on this request; its log says why", 500)
