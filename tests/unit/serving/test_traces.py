"""OpenTelemetry spans of requests, in the memory of the test instead of a collector."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.checkpoint import write_checkpoint
from tests.unit.serving.live import NAME, chat_body, live, post
from tests.unit.serving.programs import thrifty, url_of

from thrifty.engine.answer import Usage
from thrifty.errors import MissingExtra
from thrifty.serving.settings import ServerSettings
from thrifty.serving.tracing import Sender, Spans, otlp_spans

CHAT = "/v1/chat/completions"
PATIENCE = float(os.environ.get("THRIFTY_TEST_PATIENCE", "2"))  # more where others compute, too


def memory_spans() -> tuple[Spans, Any]:
    """Spans, and where they end up."""
    if importlib.util.find_spec("opentelemetry.sdk") is None:
        pytest.skip("opentelemetry-sdk is not installed: pip install 'thrifty-engine[otel]'")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Spans(provider.get_tracer("test")), exporter


def test_a_request_is_a_span_with_its_phases_inside() -> None:
    spans, exporter = memory_spans()
    usage = Usage(30, 10, 5, queued_seconds=0.5, prefill_seconds=1.0, decode_seconds=2.0, kv_bytes=99)
    spans.ended("m", usage, ["stop", None], 4.0)
    queue, prefill, decode, whole = exporter.get_finished_spans()
    assert [span.name for span in (queue, prefill, decode, whole)] == ["queue", "prefill", "decode", "request"]
    assert {span.parent.span_id for span in (queue, prefill, decode)} == {whole.context.span_id}
    lengths = [(span.end_time - span.start_time) / 1e9 for span in (queue, prefill, decode, whole)]
    assert lengths == pytest.approx([0.5, 1.0, 2.0, 4.0])
    assert (queue.end_time, prefill.end_time) == (prefill.start_time, decode.start_time)
    assert whole.start_time == queue.start_time and decode.end_time <= whole.end_time
    assert whole.attributes["gen_ai.usage.input_tokens"] == 30 and whole.attributes["thrifty.kv_bytes"] == 99
    assert whole.attributes["gen_ai.response.finish_reasons"] == ("stop", "cancelled")


def test_a_request_without_a_token_has_no_phases_that_it_did_not_have() -> None:
    spans, exporter = memory_spans()
    spans.ended("m", Usage(30, queued_seconds=0.5), ["error"], 0.6)
    assert [span.name for span in exporter.get_finished_spans()] == ["queue", "request"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_server_sends_them_in_the_trace_of_its_client(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spans, exporter = memory_spans()
    monkeypatch.setattr("thrifty.serving.app.otlp_spans", lambda: spans)
    trace = "0af7651916cd43dd8448eb211c80319c"
    with live(traces=True) as server:
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        assert post(server, CHAT, json=chat_body(stream=stream), headers=headers).status_code == 200
        assert post(server, CHAT, json=chat_body(stream=stream)).status_code == 200
    first, second = [span for span in exporter.get_finished_spans() if span.name == "request"]
    assert f"{first.context.trace_id:032x}" == trace != f"{second.context.trace_id:032x}"
    assert first.attributes["gen_ai.request.model"] == NAME and first.attributes["gen_ai.usage.output_tokens"] == 8


@pytest.mark.long
def test_a_collector_that_is_not_there_holds_nothing_up_and_is_said_once(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install 'thrifty-engine[otel]'")
    words = (write_checkpoint(tmp_path / "tiny"), "--name", NAME, "--port", 0, "--threads", 1, "--traces")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and nothing listens: connections are refused
        place = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with thrifty(*words, OTEL_EXPORTER_OTLP_ENDPOINT=place, OTEL_BSP_SCHEDULE_DELAY="100") as process:
            url = url_of(process)
            for _ in range(3):
                body = {"model": NAME, "prompt": "Hello", "max_tokens": 4}
                assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate(timeout=20)
            took = time.monotonic() - began
    assert process.returncode == 0 and took < 1.5 * PATIENCE, f"{took:.1f} s"
    assert told.count("spans do not arrive") == 1 and place in told and "Traceback" not in told, told


def test_spans_that_arrive_late_are_sent_before_the_end_and_a_failure_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    export = pytest.importorskip("opentelemetry.sdk.trace.export", reason="pip install 'thrifty-engine[otel]'")
    results, sent = [export.SpanExportResult.FAILURE] * 2 + [export.SpanExportResult.SUCCESS], []

    class Exporter:
        def export(self, spans: Sequence[Any]) -> Any:
            sent.extend(spans)
            return results.pop(0)

        def shutdown(self) -> None: ...

    sender = Sender(Exporter(), "http://nowhere")
    spans = Spans(sender.provider.get_tracer("test"), sender)
    with caplog.at_level("WARNING", "thrifty.serving"):
        for _ in range(2):
            spans.ended("m", Usage(3, queued_seconds=0.5), ["stop"], 0.6)
            sender.provider.force_flush()
        spans.ended("m", Usage(3, queued_seconds=0.5), ["stop"], 0.6)
        spans.close()
    assert len(sent) == 6 and [record.message.split()[0] for record in caplog.records] == ["spans"]
    assert "http://nowhere" in caplog.text


def test_without_the_extra_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"thrifty-engine\[otel\]"):
        otlp_spans()
    assert ServerSettings().traces is False
