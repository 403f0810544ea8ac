"""/metrics of all replicas as one: counters and histograms added up, also of replicas that are no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

Labels = tuple[tuple[str, str], ...]
Values = dict[tuple[str, Labels], float]
"""Of one family: by a sample's name and labels."""

SHARES = "_perc"
"""How names of shares end; their mean is told, not their sum."""

CREATED = "_created"
"""How names of beginnings end; the first one is told."""


class MergedMetrics:
    """Keeps what every replica told last, so that no counter falls when a replica ends."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}
        self._told: dict[str, dict[str, Values]] = {}
        self._living: set[str] = set()

    def update(self, texts: Mapping[str, str]) -> None:
        """texts: Prometheus' text format by replica, of those that live."""
        self._living = set(texts)
        for replica, text in texts.items():
            values: dict[str, Values] = {}
            for family in text_string_to_metric_families(text):
                self._families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                values[family.name] = {
                    (sample.name, tuple(sample.labels.items())): sample.value for sample in family.samples
                }
            self._told[replica] = values

    def families(self) -> list[Metric]:
        """All of them, each over all replicas."""
        merged = []
        for name, pattern in self._families.items():
            family = Metric(pattern.name, pattern.documentation, pattern.type)
            for (sample, labels), values in self._gathered(name, pattern.type).items():
                family.add_sample(sample, dict(labels), _one(sample, values))
            merged.append(family)
        return merged

    def _gathered(self, name: str, kind: str) -> dict[tuple[str, Labels], list[float]]:
        """What the replicas say of a family: of gauges those that live, of counts all that ever were."""
        gathered: dict[tuple[str, Labels], list[float]] = {}
        for replica, families in self._told.items():
            if kind == "gauge" and not name.endswith(CREATED) and replica not in self._living:
                continue
            for key, value in families.get(name, {}).items():
                gathered.setdefault(key, []).append(value)
        return gathered


def _one(name: str, values: list[float]) -> float:
    if name.endswith(CREATED):
        return min(values)
    return sum(values) / len(values) if name.endswith(SHARES) else sum(values)


def cluster_families(replicas: int, retried: int, lost: int) -> list[Metric]:
    """What the front knows itself: replicas that answer, requests that were sent again, answers that were lost."""
    return [
        GaugeMetricFamily("thrifty:replicas", "Replicas that answer.", replicas),
        CounterMetricFamily("thrifty:requests_retried", "Requests that were sent to another replica.", retried),
        CounterMetricFamily("thrifty:requests_lost", "Answers that ended with their replica.", lost),
    ]


def page(families: Iterable[Metric]) -> bytes:
    """Prometheus' text format."""

    class Families(Collector):
        def collect(self) -> Iterable[Metric]:
            return families

    registry = CollectorRegistry()
    registry.register(Families())
    return generate_latest(registry)
