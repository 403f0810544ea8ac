"""What /metrics tells: Prometheus' text format, under the names that vLLM made common, and bytes by owner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from thrifty.engine.answer import Event, Usage
from thrifty.engine.engine import Engine
from thrifty.serving.tracing import Spans

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class Instruments:
    """Counters and times of all served models, labelled by the model; what engines hold is read when somebody asks.

    spans: what makes spans of requests that are over, where the operator wants them.
    """

    def __init__(self) -> None:
        self.spans: Spans | None = None
        self._registry = CollectorRegistry()
        self.held = _Held()
        self._registry.register(self.held)
        self.prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self.generated = self._counter("generation_tokens", "Tokens of answers.")
        self.queries = self._counter(
            "prefix_cache_queries", "Tokens of prompts that were looked for in the prefix tree."
        )
        self.hits = self._counter("prefix_cache_hits", "Tokens of prompts that the prefix tree had.")
        self.preemptions = self._counter("num_preemptions", "Sequences that had to wait for memory.")
        self.success = self._counter("request_success", "Answers by their finish reason.", "finished_reason")
        self.first = self._times("time_to_first_token_seconds", "From submission to the first token.")
        self.token = self._times("request_time_per_output_token_seconds", "Mean time of a request's later tokens.")
        self.between = self._times("inter_token_latency_seconds", "From a token of a sample to its next one.")
        self.whole = self._times("e2e_request_latency_seconds", "From submission to the last token.")
        self.queue = self._times("request_queue_time_seconds", "From submission to admission.")
        self.prefill = self._times("request_prefill_time_seconds", "From admission to the first token.")
        self.decode = self._times("request_decode_time_seconds", "From the first token to the last one.")
        self.inference = self._times("request_inference_time_seconds", "From admission to the last token.")
        self.read_lengths = self._times("request_prompt_tokens", "Tokens of a request's prompt.", TOKENS)
        self.lengths = self._times("request_generation_tokens", "Tokens of a request's answers.", TOKENS)
        self.tightened = Counter(
            "thrifty:tightened_requests", "Requests that began with a recipe of --tighten, by its number.",
            ("model_name", "rung"), registry=self._registry,
        )  # fmt: skip
        self.rung = Gauge(
            "thrifty:tighten_rung", "The recipe of --tighten that new requests begin with; 0: none.",
            ("model_name",), registry=self._registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"vllm:{name}", text, ("model_name", *labels), registry=self._registry)

    def _times(self, name: str, text: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        return Histogram(f"vllm:{name}", text, ("model_name",), registry=self._registry, buckets=buckets)


class Metrics:
    """What is counted of one model."""

    def __init__(self, model: str, instruments: Instruments | None = None) -> None:
        """instruments: those that it shares with other models."""
        self.instruments = instruments or Instruments()
        self._model = model
        # What is counted for every token is looked up by its label once. generated: of so many tokens. between: seconds
        # from one token of a sample to the next.
        self.generated: Callable[[float], None] = self.instruments.generated.labels(model).inc
        self.between: Callable[[float], None] = self.instruments.between.labels(model).observe

    def watch(self, engine: Engine) -> None:
        """Tell what this engine holds from now on."""
        self.instruments.held.engines[self._model] = engine

    def forget(self) -> None:
        """The engine is no more."""
        self.instruments.held.engines.pop(self._model, None)

    def submitted(self, prompt: int, samples: int) -> None:
        """A request of so many tokens was queued."""
        self.instruments.prompt.labels(self._model).inc(prompt)
        self.instruments.queries.labels(self._model).inc(prompt)

    def tightened(self, rung: int) -> None:
        """A request was queued with a recipe of the operator's ladder, the mildest of which is 1."""
        self.instruments.tightened.labels(self._model, str(rung)).inc()

    def at_rung(self, rung: int) -> None:
        """New requests begin with this recipe of the ladder from now on; 0: with their own."""
        self.instruments.rung.labels(self._model).set(rung)

    def read(self, prompt: int) -> None:
        """A text of so many tokens was embedded."""
        self.instruments.prompt.labels(self._model).inc(prompt)

    def ended(self, usage: Usage, reasons: list[str | None], seconds: float) -> None:
        """A request is over. seconds: since its submission."""
        if self.instruments.spans is not None:
            self.instruments.spans.ended(self._model, usage, reasons, seconds)
        name = self._model
        self.instruments.hits.labels(name).inc(usage.cached_tokens)
        self.instruments.preemptions.labels(name).inc(usage.preemptions)
        for reason in reasons:
            self.instruments.success.labels(name, reason or "abort").inc()
        self.instruments.queue.labels(name).observe(usage.queued_seconds)
        self.instruments.whole.labels(name).observe(seconds)
        if usage.generated_tokens:
            self.instruments.first.labels(name).observe(usage.queued_seconds + usage.prefill_seconds)
            self.instruments.prefill.labels(name).observe(usage.prefill_seconds)
            self.instruments.decode.labels(name).observe(usage.decode_seconds)
            self.instruments.inference.labels(name).observe(usage.prefill_seconds + usage.decode_seconds)
        self.instruments.read_lengths.labels(name).observe(usage.prompt_tokens)
        self.instruments.lengths.labels(name).observe(usage.generated_tokens)
        if usage.generated_tokens > 1:
            self.instruments.token.labels(name).observe(usage.decode_seconds / (usage.generated_tokens - 1))


class _Held(Collector):
    """Sequences, and bytes by owner, of the engines that there are. engines: by the model's name."""

    def __init__(self) -> None:
        self.engines: dict[str, Engine] = {}

    def collect(self) -> Iterator[Metric]:
        read = {name: (engine.usage(), engine.probe().budget) for name, engine in list(self.engines.items())}
        used = {name: usage for name, (usage, _) in read.items()}
        budgets = {name: budget for name, (_, budget) in read.items() if budget}
        yield _gauge(
            "vllm:num_requests_running",
            "Sequences that are computed.",
            {name: own.active for name, own in used.items()},
        )
        yield _gauge(
            "vllm:num_requests_waiting",
            "Sequences that wait for admission.",
            {name: own.waiting for name, own in used.items()},
        )
        yield _gauge(
            "vllm:num_requests_swapped",
            "Sequences that wait for memory.",
            {name: own.parked for name, own in used.items()},
        )
        shares = {name: used[name].current / budget for name, budget in budgets.items()}
        yield _gauge("vllm:kv_cache_usage_perc", "Share of the budget that is in use.", shares)
        yield _gauge("thrifty:memory_budget_bytes", "The budget.", budgets)
        held = GaugeMetricFamily("thrifty:memory_bytes", "Bytes by owner.", labels=("model_name", "owner"))
        for name, own in used.items():
            for owner, category in own.categories.items():
                held.add_metric((name, owner), category.current)
        yield held
        tiers = GaugeMetricFamily("thrifty:tier_bytes", "Bytes by tier.", labels=("model_name", "tier"))
        for name, own in used.items():
            tiers.add_metric((name, "memory"), own.current)
            tiers.add_metric((name, "disk"), own.disk)
        yield tiers
        yield _gauge("thrifty:disk_bytes", "Bytes on the disk tier.", {name: own.disk for name, own in used.items()})
        conversations = {name: own.conversations for name, own in used.items()}
        yield _gauge("thrifty:conversation_disk_bytes", "Of these, prompts that policies compressed.", conversations)
        kept = {name: own.sessions_disk for name, own in used.items()}
        yield _gauge("thrifty:session_disk_bytes", "Of these, sessions.", kept)
        sessions = {name: own.sessions for name, own in used.items()}
        yield _gauge("thrifty:sessions", "Conversations that go on from their own caches.", sessions)


def _gauge(name: str, text: str, values: Mapping[str, float]) -> Metric:
    """values: by the model's name."""
    gauge = GaugeMetricFamily(name, text, labels=("model_name",))
    for model, value in values.items():
        gauge.add_metric((model,), value)
    return gauge


class Clock:
    """Times one request for the metrics, by the events that it sends."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began = time.perf_counter()
        self._last: dict[int, float] = {}
        self._tokens = 0

    def tokens(self, events: Iterable[Event]) -> None:
        """These events came, in which samples may have got tokens."""
        now, count = time.perf_counter(), 0
        for event in events:
            if event.token is None:
                continue
            count += 1
            before = self._last.get(event.sample)
            self._last[event.sample] = now
            if before is not None:
                self._metrics.between(now - before)
        if count:
            self._tokens += count
            self._metrics.generated(count)

    def ended(self, usage: Usage, reasons: list[str | None]) -> None:
        """The request is over; tokens that nobody was told of are counted too."""
        self._metrics.generated(max(0, usage.generated_tokens - self._tokens))
        self._metrics.ended(usage, reasons, time.perf_counter() - self._began)
