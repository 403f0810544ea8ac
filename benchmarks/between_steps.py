"""Time between two native steps, a token: all that is not the plan, while one answer (or several) decodes.

    python benchmarks/between_steps.py [MODEL] [--tokens 300] [--batch 1] [--threads 2]

Each way to read an answer is measured for each way to sample: `result` waits for its end, `stream` takes its text piece
by piece, `step` calls `Engine.step` once a token. What is measured is the wall time that passed outside the plan's
steps; with --processor the time that the calling thread had a processor, for machines that are not quiet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from thrifty.api import Thrifty
from thrifty.engine.request import Handle

PROMPT = "The lighthouse stood at the end of a long spit of rock, and for most of the year nobody went there. " * 6
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8, "seed": 1},
    "top-k 40": {"temperature": 0.8, "top_k": 40, "seed": 1},
    "top-p 0.95": {"temperature": 0.8, "top_p": 0.95, "seed": 1},
    "penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.1},
}


def result(model: Thrifty, handles: list[Handle]) -> None:
    for handle in handles:
        handle.result()


def stream(model: Thrifty, handles: list[Handle]) -> None:
    for _ in handles[0].text():
        pass


def step(model: Thrifty, handles: list[Handle]) -> None:
    while not handles[0].finished:
        model.engine.step()


READINGS: dict[str, Callable[[Thrifty, list[Handle]], None]] = {"result": result, "stream": stream, "step": step}


def between(model: Thrifty, reading: str, tokens: int, batch: int, sampling: dict[str, Any], processor: bool) -> float:
    """Microseconds outside the plan, a step: of all answers together."""
    plan = model.engine.runner.plan  # type: ignore[attr-defined]
    handles = [model.submit(PROMPT, max_tokens=tokens, ignore_eos=True, **sampling) for _ in range(batch)]
    while any(len(handle.samples[0].token_ids) < 2 for handle in handles):
        model.engine.step()
    clock = time.thread_time if processor else time.perf_counter
    start, inside = clock(), plan.spent[processor]
    READINGS[reading](model, handles)
    outside = clock() - start - (plan.spent[processor] - inside)
    for handle in handles:
        handle.cancel()
    return outside / (tokens - 2) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processor", action="store_true")
    options = parser.parse_args()
    found: dict[str, float] = {}
    with Thrifty(options.model, threads=options.threads) as model:
        for sampling, values in SAMPLING.items():
            for reading in READINGS:
                rounds = [
                    between(model, reading, options.tokens, options.batch, values, options.processor)
                    for _ in range(options.rounds)
                ]
                found[f"{sampling}, {reading}"] = round(statistics.median(rounds), 1)
                print(f"{sampling:12} {reading:8} {found[f'{sampling}, {reading}']:8.1f} µs a token", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
