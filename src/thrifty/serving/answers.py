"""Reading a request's events: all at once, or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from fastapi.responses import StreamingResponse

from thrifty.engine.answer import Event
from thrifty.engine.async_handle import AsyncHandle
from thrifty.engine.request import Result
from thrifty.serving.bodies import Usage
from thrifty.serving.errors import described
from thrifty.serving.metrics import Clock, Metrics

T = TypeVar("T")
Chunks = Callable[[Event], list[dict[str, Any]]]
"""What a client is sent for one event."""


async def unless_gone(http: HttpRequest, answer: Awaitable[T]) -> T | None:
    """The answer; None, with its task cancelled, where the client hangs up before."""
    task = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_hung_up(http))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for own in (task, gone):
            own.cancel()


async def _hung_up(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def whole(handle: AsyncHandle, metrics: Metrics, read: Callable[[Event], object] | None = None) -> Result:
    """Wait for the end. read: told of every event. Raises the request's error; cancelling it cancels the request."""
    clock = Clock(metrics)
    async with handle:
        try:
            async for event in handle:
                if event.token is not None:
                    clock.token(event.sample)
                if read is not None:
                    read(event)
        finally:
            clock.ended(handle.usage, [sample.finish_reason for sample in handle.samples])
        return Result(handle.identity, handle.samples, handle.usage)


def streamed(
    handle: AsyncHandle,
    metrics: Metrics,
    first: list[dict[str, Any]],
    chunks: Chunks,
    last: Callable[[], list[dict[str, Any]]],
    keep_alive: float,
) -> StreamingResponse:
    """An answer as it comes. first: chunks before any event; last: those after all. keep_alive: seconds of silence
    after which a comment is sent. A client that hangs up ends the request.
    """

    async def lines() -> AsyncIterator[bytes]:
        clock = Clock(metrics)
        async with handle:
            try:
                for chunk in first:
                    yield _data(chunk)
                async for event in _patiently(handle, keep_alive):
                    if event is None:
                        yield b": keep-alive\n\n"
                        continue
                    if event.token is not None:
                        clock.token(event.sample)
                    for chunk in chunks(event):
                        yield _data(chunk)
                for chunk in last():
                    yield _data(chunk)
                yield b"data: [DONE]\n\n"
            except Exception as error:
                yield _data(described(error)[1])
            finally:
                clock.ended(handle.usage, [sample.finish_reason for sample in handle.samples])

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)


async def _patiently(handle: AsyncHandle, keep_alive: float) -> AsyncIterator[Event | None]:
    """The events, and None for each time that none came for so many seconds."""
    waiting: asyncio.Task[Event] | None = None
    try:
        while True:
            if waiting is None:
                waiting = asyncio.ensure_future(handle.__anext__())
            done, _ = await asyncio.wait((waiting,), timeout=keep_alive)
            if not done:
                yield None
                continue
            arrived, waiting = waiting, None
            try:
                event = arrived.result()
            except StopAsyncIteration:
                return
            yield event
    finally:
        if waiting is not None:
            waiting.cancel()


def _data(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def usage_of(handle: AsyncHandle) -> Usage:
    """Tokens and cost of a request so far."""
    used = handle.usage
    return Usage(
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.generated_tokens,
        total_tokens=used.prompt_tokens + used.generated_tokens,
        prompt_tokens_details={"cached_tokens": used.cached_tokens},
        thrifty={
            "queued_seconds": round(used.queued_seconds, 4),
            "prefill_seconds": round(used.prefill_seconds, 4),
            "decode_seconds": round(used.decode_seconds, 4),
            "prefill_tokens_per_second": round(used.prefill_rate, 1),
            "decode_tokens_per_second": round(used.decode_rate, 1),
        },
    )
