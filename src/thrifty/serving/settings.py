"""What an operator decides about a server."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from thrifty.errors import ThriftyError
from thrifty.serving.tightening.ladder import Ladder


class ServerError(ThriftyError):
    """A server cannot be started as it was asked for; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How the server is reached, who may use it, and what a request may ask for."""

    #: The address to listen at.
    host: str = "127.0.0.1"
    #: 0: any that is free.
    port: int = 8000
    #: Keys of which a client must show one. None: everybody who reaches the server may use it.
    api_keys: tuple[str, ...] = ()
    #: Whether an address that others reach may be served without a key.
    public: bool = False
    #: Most bytes of a request's body.
    body_bytes: int = 16 << 20
    #: Seconds in which a body must have come.
    body_seconds: float = 30.0
    #: Most answers to one prompt.
    samples: int = 16
    #: Most prompts of one request for completions.
    prompts: int = 64
    #: Most texts of one request for embeddings or an order.
    texts: int = 2048
    #: Whether spans of requests are sent by OpenTelemetry.
    traces: bool = False
    #: Whether a request may choose techniques of prompt, cache and decoding, and a bound on its cache.
    request_recipes: bool = True
    #: Names of those that it may choose. None: any.
    request_techniques: tuple[str, ...] | None = None
    #: Most bytes that a request's cache may take; also of one that brings no bound. None: as many as there are.
    request_cache_memory: int | None = None
    #: The highest priority that a request may ask for, and the lowest below zero; 0: none.
    priority: int = 0
    #: Most requests of one key that are answered at a time. None: as many as come.
    key_requests: int | None = None
    #: Adapters in it may be loaded and unloaded by requests. None: the adapters are those of the start.
    adapter_folder: Path | None = None
    #: Stronger cache recipes for new requests while the server is short; None: every request has its own, always.
    tighten: Ladder | None = None
    #: Seconds that a request waits for its model to be loaded.
    load_seconds: float = 120.0
    #: Bytes that each of several loaded models has beside its weights, at least.
    model_room: int = 64_000_000
    #: Where clients may have their sessions saved; None: nowhere.
    session_folder: Path | None = None
    #: Seconds between comments that keep a silent stream open.
    keep_alive_seconds: float = 15.0
    #: Seconds that answers under way get to end when the server is told to stop.
    drain_seconds: float = 30.0

    def check(self) -> None:
        """Raise ServerError for an address that others reach, without a key and unasked."""
        if not self.api_keys and not self.public and not is_loopback(self.host):
            raise ServerError(
                f"host {self.host} can be reached from other machines, and no API key is set: give --api-key (or "
                "THRIFTY_API_KEY), listen at 127.0.0.1, or say --public if everybody may use it"
            )
        if self.key_requests is not None and not self.api_keys:
            raise ServerError(
                "a bound on the requests of a key needs keys: give --api-key, or leave --key-requests out"
            )
        if self.tighten is not None:
            self.tighten.check()
        if any(not key for key in self.api_keys):
            raise ServerError("an API key is empty; give one of at least 1 character, or leave --api-key out")
        if any(not (key.isascii() and key.isprintable()) or key != key.strip() for key in self.api_keys):
            raise ServerError(
                "an API key has characters that no client can send; use printable ones of ASCII, without spaces around"
            )


def is_loopback(host: str) -> bool:
    """Whether an address, or a Host header's name, is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
