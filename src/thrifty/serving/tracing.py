"""OpenTelemetry spans (the extra `otel`): one a request, and inside it the queue, the prefill and the decode.

Spans are made when a request is over, from the times that its usage has anyway: a token costs nothing. Where they go is
said by OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_SERVICE_NAME. A client's
`traceparent` header makes them part of its trace. Attributes have the names of OpenTelemetry's conventions for
generative models, where there is one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Receive, Scope, Send

from thrifty import extras
from thrifty.engine.answer import Usage
from thrifty.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_LOG = logging.getLogger("thrifty.serving")

SECOND = 1_000_000_000  # nanoseconds
LAST_SECONDS = 0.5
"""How long a server that ends waits for spans to be sent."""


class Spans:
    """Makes the spans of requests. tracer: of OpenTelemetry's API. sender: what sends them, where that ends with us."""

    def __init__(self, tracer: Tracer, sender: Sender | None = None) -> None:
        self._tracer, self._sender = tracer, sender

    def close(self) -> None:
        """Send what is left, within `LAST_SECONDS`."""
        if self._sender is not None:
            self._sender.close()

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


class Sender:
    """Sends spans in batches from a thread of its own, and says once where they do not arrive.

    exporter: of OpenTelemetry's SDK.
    """

    def __init__(self, exporter: Any, place: str) -> None:
        """place: where they go, for people."""
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._exporter, self._place, self._told = exporter, place, False
        self.provider = TracerProvider(shutdown_on_exit=False)  # it would wait for a collector that is not there
        self.provider.add_span_processor(BatchSpanProcessor(self))  # type: ignore[arg-type]

    def export(self, spans: Sequence[Any]) -> Any:
        """Send a batch; as the SDK asks it of an exporter."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._told = False
        else:
            self._warn()
        return result

    def shutdown(self) -> None:
        """Give up what is being sent; as the SDK asks it of an exporter."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Nothing waits here; as the SDK asks it of an exporter."""
        return True

    def close(self) -> None:
        """Send what is left; what has not arrived after `LAST_SECONDS` is given up."""
        ending = threading.Thread(target=self.provider.shutdown, name="thrifty-spans", daemon=True)
        ending.start()
        ending.join(LAST_SECONDS)
        if ending.is_alive():
            self._warn()
            self.shutdown()

    def _warn(self) -> None:
        """Once, until spans arrive again."""
        if not self._told:
            self._told = True
            _LOG.warning(
                "spans do not arrive at %s and are dropped; requests are answered as ever. Start a collector there, or "
                "name another place by OTEL_EXPORTER_OTLP_ENDPOINT",
                self._place,
            )


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

    logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)  # it says every attempt
    sender = Sender(OTLPSpanExporter(), _place())
    return Spans(sender.provider.get_tracer("thrifty", VERSION), sender)


def _place() -> str:
    """Where OpenTelemetry's variables send spans."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), "http://localhost:4318")


def _headers(scope: Scope) -> Mapping[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
