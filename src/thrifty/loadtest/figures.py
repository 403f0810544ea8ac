"""The figures of a load, under the names that vLLM's benchmark gives them (`vllm bench serve --save-result`)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.loadtest.goodput import good
from thrifty.loadtest.load import Measured
from thrifty.loadtest.outcome import Outcome

PERCENTILES = (50.0, 90.0, 95.0, 99.0)


def figures(
    measured: Measured, objectives: Mapping[str, float], percentiles: Sequence[float] = PERCENTILES
) -> dict[str, Any]:
    """JSON-ready. Rates are a second of the whole run; times are milliseconds, over requests that succeeded.

    As in vLLM: `tpot` leaves out answers of one token, `itl` counts every gap of every request alike, and the duration
    runs from the first request to the end of the last. Beside vLLM's names: `rejected`, those refused with 429 (among
    `failed`), `total_cached_tokens`, and `cancelled`, where the run was stopped.
    """
    outcomes = [outcome for outcome in measured.outcomes if not outcome.cancelled]
    whole = [outcome for outcome in outcomes if outcome.success]
    seconds = measured.seconds or math.inf
    read, written = sum(outcome.prompt_tokens for outcome in whole), sum(outcome.output_tokens for outcome in whole)
    document: dict[str, Any] = {
        "duration": measured.seconds,
        "completed": len(whole),
        "failed": len(outcomes) - len(whole),
        "rejected": sum(outcome.rejected for outcome in outcomes),
        "total_input_tokens": read,
        "total_output_tokens": written,
        "total_cached_tokens": sum(outcome.cached_tokens for outcome in whole),
        "request_throughput": len(whole) / seconds,
        "request_goodput": good(whole, objectives) / seconds if objectives else None,
        "output_throughput": written / seconds,
        "total_token_throughput": (read + written) / seconds,
        "max_output_tokens_per_s": most_tokens_a_second(whole),
        "max_concurrent_requests": most_at_a_time(whole),
    }
    times = {
        "ttft": [outcome.ttft for outcome in whole],
        "tpot": [outcome.tpot for outcome in whole if outcome.output_tokens > 1],
        "itl": [gap for outcome in whole for gap in outcome.itl],
        "e2el": [outcome.latency for outcome in whole],
    }
    for name, values in times.items():
        document |= _summary(name, values, percentiles)
    return document | ({"cancelled": True} if measured.cancelled else {})


def details(measured: Measured) -> dict[str, Any]:
    """What each request met, in vLLM's lists (`--save-detailed`). Failed requests have 0 tokens and no times."""
    outcomes = [outcome for outcome in measured.outcomes if not outcome.cancelled]
    return {
        "input_lens": [outcome.prompt_tokens for outcome in outcomes],
        "output_lens": [outcome.output_tokens if outcome.success else 0 for outcome in outcomes],
        "ttfts": [outcome.ttft for outcome in outcomes],
        "itls": [outcome.itl for outcome in outcomes],
        "generated_texts": [outcome.text for outcome in outcomes],
        "errors": [outcome.error for outcome in outcomes],
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` percent of them lie, by a line between the two nearest; 0 where there are none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def most_tokens_a_second(outcomes: Sequence[Outcome]) -> float:
    """Pieces of text in the busiest second, counted in whole seconds from the first request on."""
    counts: dict[int, int] = {}
    begin = min((outcome.start for outcome in outcomes), default=0.0)
    for outcome in outcomes:
        moment = outcome.start + outcome.ttft - begin
        for gap in (0.0, *outcome.itl):
            moment += gap
            counts[int(moment)] = counts.get(int(moment), 0) + 1
    return float(max(counts.values(), default=0))


def most_at_a_time(outcomes: Sequence[Outcome]) -> int:
    """Requests under way in the busiest second; as in vLLM, one that ends and one that begins within it count both."""
    counts: dict[int, int] = {}
    begin = min((outcome.start for outcome in outcomes), default=0.0)
    for outcome in outcomes:
        for second in range(int(outcome.start - begin), int(outcome.start + outcome.latency - begin) + 1):
            counts[second] = counts.get(second, 0) + 1
    return max(counts.values(), default=0)


def _summary(name: str, seconds: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    values = [1e3 * value for value in seconds]
    summary = {
        f"mean_{name}_ms": statistics.fmean(values) if values else 0.0,
        f"median_{name}_ms": percentile(values, 50),
        f"std_{name}_ms": statistics.pstdev(values) if values else 0.0,
    }
    return summary | {f"p{share:g}_{name}_ms": percentile(values, share) for share in percentiles}
