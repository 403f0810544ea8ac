"""Who may use the server: API keys, and browsers' pages of other sites."""

from __future__ import annotations

import hmac
from collections import Counter

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from thrifty.serving.errors import RequestError, response
from thrifty.serving.settings import ServerSettings, is_loopback

OPEN = frozenset(("/health", "/"))
"""What needs no key: what watches whether the server lives has none, and the page is where a person gives one."""

OPEN_BELOW = "/page/"

CLAIM = "thrifty.claim"
"""Where a request's scope holds its claim."""


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
        claim = Claim(self._requests, key_of(connection) if scope["method"] == "POST" else None)
        try:
            claim.take(1)
        except RequestError as error:
            told = response(str(error), error.status, code=error.code, retry_after=error.retry_after)
            return await told(scope, receive, send)
        try:
            await self._app({**scope, CLAIM: claim}, receive, send)
        finally:
            claim.end()

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

    def enter(self, key: str | None, count: int) -> None:
        """Count so many more of a key. Raises RequestError (429; 400 for more than it may ever have)."""
        if key is None or self.most is None or not count:
            return
        if count > self.most:
            raise RequestError(f"{count} prompts are given; a key has {self.most} answered at a time at most")
        if self._counts[key] + count > self.most:
            told = f"{self._counts[key]} requests of this key are being answered, and it may have {self.most}"
            raise RequestError(told, 429, code="key_requests", retry_after=1)
        self._counts[key] += count

    def leave(self, key: str | None, count: int) -> None:
        """So many that were counted are over."""
        if key is None or self.most is None or not count:
            return
        self._counts[key] -= count
        if not self._counts[key]:
            del self._counts[key]


class Claim:
    """What one HTTP request has of its key's requests: one, or as many as it has prompts."""

    def __init__(self, requests: KeyRequests, key: str | None) -> None:
        self._requests, self._key, self._count = requests, key, 0

    def take(self, count: int) -> None:
        """Have so many in all. Raises as `KeyRequests.enter` does."""
        self._requests.leave(self._key, self._count)
        held, self._count = self._count, 0
        try:
            self._requests.enter(self._key, count)
        except RequestError:
            self._requests.enter(self._key, held)
            self._count = held
            raise
        self._count = count

    def end(self) -> None:
        """Have none any more."""
        self._requests.leave(self._key, self._count)
        self._count = 0


def claim_of(connection: HTTPConnection) -> Claim:
    """The claim of a request that `Keys` let in."""
    claim: Claim = connection.scope[CLAIM]
    return claim


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
