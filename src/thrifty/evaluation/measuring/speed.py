"""Prefill and decode speed of an engine at given contexts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.errors import PromptError
from thrifty.evaluation.forcing import Tables, force
from thrifty.evaluation.text import held_out

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine

DECODE_STEPS = 64
ROUNDS = 3
PATIENCE = 12.0  # seconds after which a context gets no further round


@dataclass(frozen=True)
class Speed:
    """Tokens a second at one context (medians over rounds; decode: all steps, those included in which a policy acted),
    and the bytes of cache a step reads.
    """

    context: int
    prefill_rate: float
    decode_rate: float
    cache_bytes: int
    rounds: int


def warm_up(engine: Engine, cache: Tables | None = None) -> None:
    """A short run, so that code, weights and buffers are in memory before anything is timed."""
    tokens = held_out(engine.model.require_tokenizer(), 64 + 9)
    for _ in force(engine, tokens[:64], tokens[64:], cache):
        pass


def measure(engine: Engine, context: int, cache: Tables | None = None, *, steps: int = DECODE_STEPS) -> Speed:
    """Speed after a prompt of `context` tokens. Decoding is timed on the `steps` tokens that follow it.

    Raises PromptError where the engine's context does not hold both, with the number that would do.
    """
    limit = engine.probe().context
    if context < 1 or context + steps + 1 > limit:
        raise PromptError(
            f"context {context} cannot be measured: with {steps + 1} decoded tokens after it the engine "
            f"holds {limit}; use 1 to {limit - steps - 1}"
        )
    tokens = held_out(engine.model.require_tokenizer(), context + steps + 1)
    prefill: list[float] = []
    decode: list[float] = []
    cache_bytes = 0
    started = time.perf_counter()
    while len(prefill) < ROUNDS and (not prefill or time.perf_counter() - started < PATIENCE):
        times, cache_bytes = _round(engine, tokens[:context], tokens[context:], cache)
        prefill.append(times[0])
        decode.append(statistics.fmean(times[1:]))
    return Speed(
        context,
        context / statistics.median(prefill),
        1 / statistics.median(decode),
        cache_bytes,
        len(prefill),
    )


def _round(
    engine: Engine, prompt: Sequence[int], answer: Sequence[int], cache: Tables | None
) -> tuple[list[float], int]:
    times, cache_bytes = [], 0
    for step in force(engine, prompt, answer, cache, inspect=(len(answer) - 1,)):
        times.append(step.seconds)
        cache_bytes = step.evidence.nbytes if step.evidence else cache_bytes
    return times, cache_bytes
