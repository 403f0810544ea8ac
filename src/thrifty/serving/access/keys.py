"""Who may use the server: API keys, and browsers' pages of other sites."""

from __future__ import annotations

import hmac
from collections import Counter

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from thrifty.serving.errors import response
from thrifty.serving.settings import ServerSettings, is_loopback

OPEN = frozenset(("/health", "/"))
"""What needs no key: what watches whether the server lives has none, and the page is where a person gives one."""

OPEN_BELOW = "/page/"


def key_of(connection: HTTPConnection) -> str | None:
    """The key that a client shows: `Authorization: Bearer KEY`, or `x-api-key: KEY`."""
    kind, _, key = connection.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key:
        return key.strip()
    return connection.headers.get("x-api-key")


class Keys:
    """Refuses requests without a key that the operator gave, and those that a page of another site sends."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._keys = [key.encode() for key in settings.api_keys]
        self._own_machine = is_loopback(settings.host)
        self._requests = KeyRequests(settings.key_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        connection = HTTPConnection(scope)
        refused = self._refusal(connection)
        if refused is not None:
            message, status, code = refused
            return await response(message, status, code=code)(scope, receive, send)
        key = key_of(connection) if scope["method"] == "POST" else None
        if not self._requests.enter(key):
            told = f"{self._requests.most} requests of this key are being answered, as many as it may have"
            return await response(told, 429, code="key_requests", retry_after=1)(scope, receive, send)
        try:
            await self._app(scope, receive, send)
        finally:
            self._requests.leave(key)

    def _refusal(self, connection: HTTPConnection) -> tuple[str, int, str] | None:
        """Message, status and code; None where the request may pass."""
        host = connection.headers.get("host", "")
        if self._own_machine and not is_loopback(_name(host)):
            # A name of another site that was made to lead here (DNS rebinding).
            return f"host '{host:.80}' is not this server's: it listens for this machine alone", 403, "wrong_host"
        origin = connection.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return f"pages of '{origin:.80}' may not use this server", 403, "wrong_origin"
        path = connection.scope["path"]  # not that of the URL, which begins with what the client calls its host
        if not self._keys or path in OPEN or path.startswith(OPEN_BELOW):
            return None
        shown = (key_of(connection) or "").encode()
        matches = [hmac.compare_digest(shown, key) for key in self._keys]  # all are compared, whichever fits
        if any(matches):
            return None
        return "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'", 401, "invalid_api_key"


class KeyRequests:
    """How many requests of each key are being answered. most: at a time; None: as many as come."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._counts: Counter[str] = Counter()

    def enter(self, key: str | None) -> bool:
        """Count one more of a key, unless it has as many as it may."""
        if key is None or self.most is None:
            return True
        if self._counts[key] >= self.most:
            return False
        self._counts[key] += 1
        return True

    def leave(self, key: str | None) -> None:
        """One that was counted is over."""
        if key is None or self.most is None:
            return
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
