"""OpenTelemetry spans (the extra `otel`): one a request, and inside it the queue, the prefill and the decode.

Spans are made when a request is over, from the times that its usage has anyway: a token costs nothing. Where they go is
said by OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_SERVICE_NAME. A client's
`traceparent` header makes them part of its trace. Attributes have the names of OpenTelemetry's conventions for
generative models, where there is one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Receive, Scope, Send

from thrifty import extras
from thrifty.engine.answer import Usage
from thrifty.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

SECOND = 1_000_000_000  # nanoseconds


class Spans:
    """Makes the spans of requests. tracer: of OpenTelemetry's API."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def ended(self, model: str, usage: Usage, reasons: Sequence[str | None], seconds: float) -> None:
        """A request is over, which took so many seconds. It belongs to the trace of the task that calls."""
        end = time.time_ns()
        begin = end - round(seconds * SECOND)
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "thrifty",
            "gen_ai.request.model": model,
            "gen_ai.request.choice.count": len(reasons),
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.generated_tokens,
            "gen_ai.response.finish_reasons": [reason or "cancelled" for reason in reasons],
            "thrifty.cached_tokens": usage.cached_tokens,
            "thrifty.kv_bytes": usage.kv_bytes,
            "thrifty.preemptions": usage.preemptions,
        }
        whole = self._tracer.start_span("request", start_time=begin, attributes=attributes)
        self._phases(whole, usage, begin)
        whole.end(end)

    def _phases(self, whole: Any, usage: Usage, begin: int) -> None:
        """Those that there were, one after the other."""
        from opentelemetry.trace import set_span_in_context

        inside = set_span_in_context(whole)
        phases = {"queue": usage.queued_seconds, "prefill": usage.prefill_seconds, "decode": usage.decode_seconds}
        for name, seconds in phases.items():
            if seconds <= 0 and name != "queue":
                continue
            span = self._tracer.start_span(name, context=inside, start_time=begin)
            begin += round(seconds * SECOND)
            span.end(begin)


class TraceContext:
    """Lets what a request does belong to the trace that its headers name (W3C Trace Context)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from opentelemetry import context
        from opentelemetry.propagate import extract

        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        token = context.attach(extract(_headers(scope)))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)


def otlp_spans() -> Spans:
    """Spans that go out by OTLP over HTTP, in batches, from a thread of its own. Raises MissingExtra."""
    for module in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        extras.require(module, "otel", "thrifty serve --traces")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Spans(provider.get_tracer("thrifty", VERSION))


def _headers(scope: Scope) -> Mapping[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
