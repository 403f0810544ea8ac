"""What /metrics tells: Prometheus' text format, under the names that vLLM made common, and bytes by owner."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from thrifty.engine.answer import Usage
from thrifty.engine.engine import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)


class Metrics:
    """Counters and times of one served model; what the engine holds is read when somebody asks."""

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._model = model

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"vllm:{name}", text, ("model_name", *labels), registry=self._registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"vllm:{name}", text, ("model_name",), registry=self._registry, buckets=SECONDS)

        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._generated = counter("generation_tokens", "Tokens of answers.")
        self._queries = counter("prefix_cache_queries", "Tokens of prompts that were looked for in the prefix tree.")
        self._hits = counter("prefix_cache_hits", "Tokens of prompts that the prefix tree had.")
        self._preemptions = counter("num_preemptions", "Sequences that had to wait for memory.")
        self._success = counter("request_success", "Answers by their finish reason.", "finished_reason")
        self._first = histogram("time_to_first_token_seconds", "From submission to the first token.")
        self._token = histogram("request_time_per_output_token_seconds", "Mean time of a request's later tokens.")
        self._between = histogram("inter_token_latency_seconds", "From a token of a sample to its next one.")
        self._whole = histogram("e2e_request_latency_seconds", "From submission to the last token.")
        self._queue = histogram("request_queue_time_seconds", "From submission to admission.")

    def watch(self, engine: Engine) -> None:
        """Tell what this engine holds from now on."""
        self._registry.register(_Held(engine, self._model))

    def submitted(self, prompt: int, samples: int) -> None:
        """A request of so many tokens was queued."""
        self._prompt.labels(self._model).inc(prompt)
        self._queries.labels(self._model).inc(prompt)

    def read(self, prompt: int) -> None:
        """A text of so many tokens was embedded."""
        self._prompt.labels(self._model).inc(prompt)

    def between(self, seconds: float) -> None:
        """Time from one token of a sample to the next."""
        self._between.labels(self._model).observe(seconds)

    def generated(self, tokens: int) -> None:
        """So many tokens were answered."""
        self._generated.labels(self._model).inc(tokens)

    def ended(self, usage: Usage, reasons: list[str | None], seconds: float) -> None:
        """A request is over. seconds: since its submission."""
        name = self._model
        self._hits.labels(name).inc(usage.cached_tokens)
        self._preemptions.labels(name).inc(usage.preemptions)
        for reason in reasons:
            self._success.labels(name, reason or "abort").inc()
        self._queue.labels(name).observe(usage.queued_seconds)
        self._whole.labels(name).observe(seconds)
        if usage.generated_tokens:
            self._first.labels(name).observe(usage.queued_seconds + usage.prefill_seconds)
        if usage.generated_tokens > 1:
            self._token.labels(name).observe(usage.decode_seconds / (usage.generated_tokens - 1))

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Held(Collector):
    """Sequences, and bytes by owner, of an engine."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine, self._model = engine, model

    def collect(self) -> Iterator[Metric]:
        usage, budget = self._engine.usage(), self._engine.probe().budget
        yield self._gauge("vllm:num_requests_running", "Sequences that are computed.", usage.active)
        yield self._gauge("vllm:num_requests_waiting", "Sequences that wait for admission.", usage.waiting)
        yield self._gauge("vllm:num_requests_swapped", "Sequences that wait for memory.", usage.parked)
        if budget:
            yield self._gauge("vllm:kv_cache_usage_perc", "Share of the budget that is in use.", usage.current / budget)
            yield self._gauge("thrifty:memory_budget_bytes", "The budget.", budget)
        held = GaugeMetricFamily("thrifty:memory_bytes", "Bytes by owner.", labels=("model_name", "owner"))
        for owner, own in usage.categories.items():
            held.add_metric((self._model, owner), own.current)
        yield held
        yield self._gauge("thrifty:disk_bytes", "Bytes on the disk tier.", usage.disk)
        yield self._gauge(
            "thrifty:conversation_disk_bytes", "Of these, prompts that policies compressed.", usage.conversations
        )
        yield self._gauge("thrifty:session_disk_bytes", "Of these, sessions.", usage.sessions_disk)
        yield self._gauge("thrifty:sessions", "Conversations that go on from their own caches.", usage.sessions)

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        gauge = GaugeMetricFamily(name, text, labels=("model_name",))
        gauge.add_metric((self._model,), value)
        return gauge


class Clock:
    """Times one request for the metrics, by the events that it sends."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began = time.perf_counter()
        self._last: dict[int, float] = {}
        self._tokens = 0

    def token(self, sample: int) -> None:
        """A sample got a token."""
        self._tokens += 1
        self._metrics.generated(1)
        now = time.perf_counter()
        before = self._last.get(sample)
        self._last[sample] = now
        if before is not None:
            self._metrics.between(now - before)

    def ended(self, usage: Usage, reasons: list[str | None]) -> None:
        """The request is over; tokens that nobody was told of are counted too."""
        self._metrics.generated(max(0, usage.generated_tokens - self._tokens))
        self._metrics.ended(usage, reasons, time.perf_counter() - self._began)
