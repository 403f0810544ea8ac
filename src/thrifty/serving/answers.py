"""Reading a request's events: all at once, or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, StreamingResponse

from thrifty.engine.answer import Event
from thrifty.engine.async_handle import AsyncHandle
from thrifty.engine.request import Result
from thrifty.recipe import Recipe
from thrifty.serving.bodies.sampling import Usage
from thrifty.serving.errors import RequestError, described
from thrifty.serving.metrics import Clock, Metrics

STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}
"""As the OpenAPI document says it of endpoints that stream where they are asked to."""

RECIPE_HEADER = "thrifty-recipe"
LONGEST_HEADER = 500  # characters

ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

T = TypeVar("T")
Chunks = Callable[[Event], list[dict[str, Any]]]
"""What a client is sent for one event."""


def data_line(chunk: dict[str, Any]) -> bytes:
    """A chunk as a server-sent event without a name."""
    return b"data: " + ENCODER.encode(chunk).encode() + b"\n\n"


def named_event(chunk: dict[str, Any]) -> bytes:
    """A chunk as an event that is named by its type."""
    return b"event: " + str(chunk["type"]).encode() + b"\n" + data_line(chunk)


@dataclass(frozen=True)
class StreamForm:
    """How an API streams. line: a chunk in bytes. failed: the chunk for an error. ping: what keeps a silent stream
    open. end: the last bytes of a stream that went well.
    """

    line: Callable[[dict[str, Any]], bytes] = data_line
    failed: Callable[[Exception], dict[str, Any]] = lambda error: described(error)[1]
    ping: bytes = b": keep-alive\n\n"
    end: bytes = b"data: [DONE]\n\n"


OPENAI = StreamForm()


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
                clock.tokens((event,))
                if read is not None:
                    read(event)
        finally:
            clock.ended(handle.usage, [sample.finish_reason for sample in handle.samples])
        _check_end(handle)
        return Result(handle.identity, handle.samples, handle.usage)


def streamed(
    handle: AsyncHandle,
    metrics: Metrics,
    first: list[dict[str, Any]],
    chunks: Chunks,
    last: Callable[[], list[dict[str, Any]]],
    keep_alive: float,
    form: StreamForm = OPENAI,
) -> StreamingResponse:
    """An answer as it comes. first: chunks before any event; last: those after all. keep_alive: seconds of silence
    after which a comment is sent. form: the API's. A client that hangs up ends the request.
    """

    async def content() -> AsyncIterator[bytes]:
        clock = Clock(metrics)
        async with handle:
            try:
                if first:
                    yield b"".join(map(form.line, first))
                async with contextlib.aclosing(handle.batches(keep_alive)) as batches:
                    async for events in batches:
                        clock.tokens(events)
                        # Who ended a sample that was cancelled is said when all are over.
                        told = (event for event in events if event.finish_reason != "cancelled")
                        lines = [form.line(chunk) for event in told for chunk in chunks(event)]
                        if lines or not events:
                            yield b"".join(lines) or form.ping
                _check_end(handle)
                for chunk in last():
                    yield form.line(chunk)
                yield form.end
            except Exception as error:
                yield form.line(form.failed(error))
            finally:
                clock.ended(handle.usage, [sample.finish_reason for sample in handle.samples])

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"} | recipe_headers([handle])
    return StreamingResponse(content(), media_type="text/event-stream", headers=headers)


def answered(content: dict[str, Any], handles: Sequence[AsyncHandle]) -> JSONResponse:
    """A whole answer of these requests, with the recipe that served them as a header."""
    return JSONResponse(content, headers=recipe_headers(handles))


def recipe_headers(handles: Sequence[AsyncHandle]) -> dict[str, str]:
    """The cache recipe of requests as a header, where one was chosen for them: by their client, or by the operator's
    ladder.
    """
    labels = dict.fromkeys(label for handle in handles if (label := _recipe(handle)) is not None)
    text = "; ".join(labels)[:LONGEST_HEADER]
    return {RECIPE_HEADER: text.encode("unicode_escape").decode("ascii")} if labels else {}


def _recipe(handle: AsyncHandle) -> str | None:
    """What people call a request's cache recipe; None where it is the server's own."""
    cache = handle.request.cache
    return None if cache is None else Recipe(cache=[dict(table) for table in cache]).label()


def _check_end(handle: AsyncHandle) -> None:
    """Who still reads did not cancel. Raise RequestError where the server ended the answer."""
    if any(sample.finish_reason == "cancelled" for sample in handle.samples):
        raise RequestError("the server is shutting down and ended this answer; ask again", 503, code="shutting_down")


def usage_of(handle: AsyncHandle) -> Usage:
    """Tokens and cost of a request so far."""
    used, recipe = handle.usage, _recipe(handle)
    cost: dict[str, float | int | str] = {
        "kv_bytes": used.kv_bytes,
        "queued_seconds": round(used.queued_seconds, 4),
        "prefill_seconds": round(used.prefill_seconds, 4),
        "decode_seconds": round(used.decode_seconds, 4),
        "prefill_tokens_per_second": round(used.prefill_rate, 1),
        "decode_tokens_per_second": round(used.decode_rate, 1),
    }
    if used.kept_tokens != used.prompt_tokens:
        cost["kept_tokens"] = used.kept_tokens
    if recipe is not None:
        cost["recipe"] = recipe
    return Usage(
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.generated_tokens,
        total_tokens=used.prompt_tokens + used.generated_tokens,
        prompt_tokens_details={"cached_tokens": used.cached_tokens},
        thrifty=cost,
    )
