"""A server that answers as it is told to: bytes, with pauses between them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Script = Callable[[dict[str, Any]], Sequence[tuple[float, bytes]]]
"""From a request's body to the answer: seconds to wait, then bytes to send, again and again."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Scripted:
    """What it was asked. url: where it listens. bodies: of all requests. most: the most requests at a time."""

    def __init__(self, script: Script) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.most = 0
        self.left = 0  # clients that hung up before the answer's end
        self._running = 0
        self._script = script

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(int(line[15:]) for line in head.splitlines() if line.lower().startswith("content-length:"))
        body = json.loads(await reader.readexactly(length))
        self.bodies.append(body)
        self._running += 1
        self.most = max(self.most, self._running)
        try:
            for pause, piece in self._script(body):
                await asyncio.sleep(pause)
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            self.left += 1
        finally:
            self._running -= 1
            writer.close()


@contextmanager
def scripted(script: Script) -> Iterator[Scripted]:
    """One in a thread of its own."""
    server, loop, ready = Scripted(script), asyncio.new_event_loop(), threading.Event()

    async def begin() -> None:
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        ready.set()

    def run() -> None:
        loop.create_task(begin())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def event(**chunk: Any) -> bytes:
    """A chunk as an event."""
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def piece(text: str) -> bytes:
    """A chunk of a chat that adds a text."""
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])


def usage(prompt: int, answer: int, cached: int = 0) -> bytes:
    """The last chunk of a stream that was asked for its usage."""
    counted = {"prompt_tokens": prompt, "completion_tokens": answer, "prompt_tokens_details": {"cached_tokens": cached}}
    return event(choices=[], usage=counted)


DONE = b"data: [DONE]\n\n"


def refusal(status: int, message: str) -> bytes:
    """A whole answer that is an error."""
    body = json.dumps({"error": {"message": message}}).encode()
    return b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
