"""The predictor: what a recipe takes and how fast it could be, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thrifty.evaluation.cost import decode_seconds
from thrifty.evaluation.sizes import ModelSizes
from thrifty.frontier.candidates import Candidate
from thrifty.frontier.measurement import Need, Prediction

if TYPE_CHECKING:
    from thrifty.cache.policy import CachePolicy
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.machine import Machine

ANSWER = 256  # tokens of a full context that are answer; what compresses prompts leaves them whole


def predict(engine: Engine, candidate: Candidate, context: int, batch: int = 1) -> Need:
    """Bytes of `batch` sequences of `context` tokens each, at most 256 of them an answer, under the candidate. engine:
    one that holds the candidate's weights.
    """
    return _need(engine, candidate.recipe.techniques("cache"), context, batch)


def prediction(
    engine: Engine, sizes: ModelSizes, candidate: Candidate, context: int, batch: int, machine: Machine
) -> Prediction:
    """Bytes as `predict`, and the roofline of a decode step. sizes: of the engine's model."""
    policies = candidate.recipe.techniques("cache")
    held = engine.memory.cache.footprint(policies, prompt_of(context), context).steady_bytes
    return Prediction(
        candidate,
        _need(engine, policies, context, batch),
        decode_seconds(sizes, held, batch, machine),
        held,
        decode_seconds(sizes, 0, 1, machine),
    )


def longest_context(engine: Engine, candidate: Candidate, context: int, budget: int, batch: int = 1) -> int:
    """The longest context below `context` that fits, 0 where none does."""
    policies = candidate.recipe.techniques("cache")
    low, high = 0, context
    while high - low > 1:
        middle = (low + high) // 2
        if _need(engine, policies, middle, batch).peak <= budget:
            low = middle
        else:
            high = middle
    return low if low >= 2 else 0


def prompt_of(context: int) -> int:
    """The prompt that fills a context together with its answer."""
    return context - min(ANSWER, context // 4 + 1)


def _need(engine: Engine, policies: Sequence[CachePolicy], context: int, batch: int) -> Need:
    memory = engine.memory
    cache = memory.together(policies, prompt_of(context), context, batch)
    return Need(engine.model.nbytes, memory.workspace, cache.peak_bytes, cache.steady_bytes)
