"""Python time of one decode step without a model: scheduling, sampling, stopping, events.

    PYTHONPATH=. python benchmarks/engine_overhead.py

A runner that answers at once stands in for the model; the cache and everything around it are real.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tests.tiny import text_tokens, tiny_config, tiny_model

from thrifty.arrays import Floats
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request

VOCABULARY = 49152
LAYERS = 30
STEPS = 900


class Instant:
    """A runner whose every row has the same logits."""

    name, reason, layers, workspace = "instant", "for measurement", LAYERS, 0
    most_rows = 1 << 30

    def __init__(self, rows: int) -> None:
        self._values = np.random.default_rng(0).standard_normal((rows, VOCABULARY), np.float32)
        self._values[:, 65] = 9.0

    def decode(self, batch: Sequence[Any]) -> Instant:
        return self

    def prefill(self, rows: Any, last: bool) -> Instant | None:
        return self if last else None

    def best(self, row: int) -> int:
        return 65

    def keep_logits(self, rows: int) -> None:
        pass

    def logits(self, row: int) -> Floats:
        return self._values[row]


def measure(engine: Engine, batch: int, **sampling: Any) -> float:
    """Median milliseconds of a step."""
    options = SamplingParameters(max_tokens=STEPS + 50, ignore_eos=True, **sampling)
    handles = [engine.submit(Request(prompt=text_tokens(100), sampling=options)) for _ in range(batch)]
    for _ in range(batch + 3):
        engine.step()
    times = []
    for _ in range(STEPS):
        before = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - before)
    for handle in handles:
        handle.cancel()
    return statistics.median(times) * 1e3


def main() -> None:
    model = tiny_model(config=tiny_config(layers=LAYERS, vocabulary_size=VOCABULARY))
    found = {}
    for batch in (1, 8, 32):
        engine = Engine(model, runner=Instant(batch), prefill_slice_ms=0, prefix_tree=False, memory="8GB")  # type: ignore[arg-type]
        found[f"greedy, batch {batch}"] = measure(engine, batch)
        found[f"top-k 40, batch {batch}"] = measure(engine, batch, temperature=0.8, top_k=40, seed=1)
        engine.close()
    for name, milliseconds in found.items():
        print(f"{name:20} {milliseconds:8.3f} ms a step")
    print(json.dumps({name: round(milliseconds, 4) for name, milliseconds in found.items()}))


if __name__ == "__main__":
    main()
