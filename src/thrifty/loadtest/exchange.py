"""One HTTP exchange whose bytes are kept with the times at which they came.

Nothing is parsed while an answer comes: a piece costs a read and a look at the clock, so that a client on the server's
own machine takes little of it. HTTP/1.1 over asyncio's streams; the server is asked to close the connection, so that
the end of the answer is the end of the stream.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from thrifty.loadtest.errors import LoadError

PIECE = 1 << 16

MOST = 1 << 28
"""Bytes of an answer that are kept."""

INTERIM = ("100", "102", "103")
"""Statuses behind which another answer comes."""


class BrokenExchange(Exception):
    """The server gave no whole HTTP answer; the message says what was wrong."""


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    host: str
    port: int
    path: str
    tls: bool

    @classmethod
    def of(cls, url: str, path: str) -> Target:
        """The endpoint `path`, such as /v1/completions, of a server at `url`, which may end in /v1 or have a path.
        Raises LoadError.
        """
        wrong = LoadError(f"{url!r} is no server's URL; write e.g. http://127.0.0.1:8000")
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname or "", parts.port
            host.encode("idna")
        except ValueError as error:
            raise wrong from error
        if parts.scheme not in ("http", "https") or not host or port == 0 or not parts.path.isascii():
            raise wrong
        base = parts.path.rstrip("/").removesuffix("/v1")
        tls = parts.scheme == "https"
        return cls(host, port or (443 if tls else 80), base + path, tls)

    @property
    def authority(self) -> str:
        """Host and port, as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True)
class Reply:
    """An answer. pieces: its body, each part with the clock's seconds (`time.perf_counter`) at which it was read."""

    status: int
    headers: Mapping[str, str]
    pieces: Sequence[tuple[float, bytes]]

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(piece for _, piece in self.pieces)


async def exchange(target: Target, headers: Mapping[str, str], body: bytes) -> Reply:
    """POST a body and read the whole answer. Raises OSError where there is no server, and BrokenExchange."""
    context = ssl.create_default_context() if target.tls else None
    reader, writer = await asyncio.open_connection(target.host, target.port, ssl=context, limit=PIECE)
    try:
        writer.write(_request(target, headers, body))
        pieces: list[tuple[float, bytes]] = []
        size = 0
        while piece := await reader.read(PIECE):
            pieces.append((time.perf_counter(), piece))
            size += len(piece)
            if size > MOST:
                raise BrokenExchange(f"the answer has more than {MOST >> 20} MiB and does not end")
    finally:
        writer.transport.abort()  # at once, also where the task is cancelled: the server sees a client that hung up
    return reply_of(pieces)


def _request(target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
    told = {
        "Host": target.authority,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        "Accept-Encoding": "identity",
        **headers,
    }
    lines = [f"POST {target.path} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def reply_of(pieces: list[tuple[float, bytes]]) -> Reply:
    """The pieces of a connection as an answer; what a server says before it (status 1xx) is skipped. Raises
    BrokenExchange.
    """
    head, rest = b"", list(pieces)
    while b"\r\n\r\n" not in head:
        if not rest:
            raise BrokenExchange(f"the connection ended in the head of the answer: {head[:80]!r}")
        moment, piece = rest.pop(0)
        head += piece
    head, _, begun = head.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not re.fullmatch(r"[1-5][0-9]{2}", words[1]):
        raise BrokenExchange(f"the answer begins with {first[:80]!r}, which is no HTTP")
    if words[1] in INTERIM:
        return reply_of([(moment, begun), *rest])
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    parts = ([(moment, begun)] if begun else []) + rest
    if headers.get("transfer-encoding", "").lower() == "chunked":
        parts = _unchunked(parts)
    elif sum(len(part) for _, part in parts) < _length(headers.get("content-length", "0")):
        raise BrokenExchange("the connection ended before the whole answer had come")
    return Reply(int(words[1]), headers, parts)


def _length(told: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", told):
        raise BrokenExchange(f"the answer's length is {told[:20]!r}")
    return int(told)


def _unchunked(pieces: Sequence[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """The content of chunks (RFC 9112, 7.1), each with the time at which it was whole. Raises BrokenExchange."""
    content: list[tuple[float, bytes]] = []
    held = b""
    for moment, piece in pieces:
        held += piece
        while (end := held.find(b"\r\n")) >= 0:
            told = held[:end].partition(b";")[0].strip()
            if not re.fullmatch(rb"[0-9a-fA-F]{1,12}", told):
                raise BrokenExchange(f"a chunk's size is {held[:end][:20]!r}")
            size = int(told, 16)
            if size == 0:
                return content
            if len(held) < end + 2 + size + 2:
                break
            content.append((moment, held[end + 2 : end + 2 + size]))
            held = held[end + 2 + size + 2 :]
    raise BrokenExchange("the connection ended before the last chunk had come")
