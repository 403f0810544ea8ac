"""The predictor: what a recipe takes and how fast it could be, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from thrifty.bisection import largest
from thrifty.evaluation.roofline.cost import decode_seconds, prefill_seconds
from thrifty.evaluation.roofline.sizes import ModelSizes, StoredLinear
from thrifty.frontier.candidates import Candidate
from thrifty.frontier.measurement import Need, Prediction
from thrifty.frontier.reading import prefills
from thrifty.weights.sizes import Predictor

if TYPE_CHECKING:
    from thrifty.cache.policy import CachePolicy
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.roofline.machine import Machine
    from thrifty.recipe import Recipe
    from thrifty.weights.technique import Technique

ANSWER = 256  # tokens of a full context that are answer; what compresses prompts leaves them whole


def as_stored(sizes: ModelSizes, techniques: Sequence[Technique]) -> ModelSizes:
    """A model's sizes under weight techniques, exact; nothing but a few rows of each shape is compressed.

    Raises RecipeError for a technique that needs calibration, or acts on more than one linear at a time.
    """
    predictor = Predictor(techniques)

    def restore(linear: StoredLinear) -> StoredLinear:
        stored = predictor.stored(linear.name, linear.rows, linear.columns, bias=linear.has_bias)
        return linear if stored is None else replace(linear, nbytes=stored[0], label=stored[1])

    return sizes.stored(restore) if techniques else sizes


def unpredictable(recipe: Recipe) -> str | None:
    """Why bytes and time of a recipe cannot be told without running it, None where they can."""
    if recipe.prompt:
        return (
            f"its prompt technique {recipe.prompt[0].get('technique')!r} runs a model over every prompt first, and "
            "what is read of a prompt is not predicted; search without the prompt stage, and add it to the recipe "
            "afterwards"
        )
    if not recipe.drafts:
        return None
    return (
        f"{' and '.join(map(repr, recipe.drafts))} drafts for it: what a model that drafts takes, and how much of its "
        "drafts is accepted, is not predicted; search without the decoding stage, and add it to the recipe afterwards"
    )


def predict(
    engine: Engine, candidate: Candidate, context: int, batch: int = 1, sizes: ModelSizes | None = None
) -> Need:
    """Bytes of `batch` sequences of `context` tokens each, at most 256 of them an answer, under the candidate. sizes:
    of the candidate's weights, None: those that the engine holds. What models that draft take is not in it.
    """
    weights = engine.probe().weights if sizes is None else sizes.nbytes
    return _need(engine, weights, candidate.recipe.techniques("cache"), context, batch)


def prediction(
    engine: Engine, sizes: ModelSizes, candidate: Candidate, context: int, batch: int, machine: Machine
) -> Prediction:
    """Bytes as `predict`, the roofline of a decode step, and of reading the prompt. sizes: of the candidate's weights.

    Raises PromptError or RecipeError where a policy cannot compress the prompt that fills the context.
    """
    policies, model, prompt = candidate.recipe.techniques("cache"), engine.probe().cache_model, prompt_of(context)
    for policy in policies:
        policy.check_prompt(model, prompt)
    held = engine.cache_footprint(policies, prompt, context).steady_bytes
    count = prefills(policies, model)
    return Prediction(
        candidate,
        _need(engine, sizes.nbytes, policies, context, batch),
        decode_seconds(sizes, held, batch, machine),
        held,
        decode_seconds(sizes, 0, 1, machine),
        count,
        count * prefill_seconds(sizes, prompt, machine),
    )


def longest_context(engine: Engine, predicted: Prediction, context: int, budget: int, batch: int = 1) -> int:
    """The longest context below `context` at which a predicted candidate fits, 0 where none does."""
    policies = predicted.candidate.recipe.techniques("cache")
    weights = predicted.need.weights
    longest = largest(0, context - 1, lambda tokens: _need(engine, weights, policies, tokens, batch).peak <= budget)
    return longest if longest >= 2 else 0


def prompt_of(context: int) -> int:
    """The prompt that fills a context together with its answer."""
    return context - min(ANSWER, context // 4 + 1)


def _need(engine: Engine, weights: int, policies: Sequence[CachePolicy], context: int, batch: int) -> Need:
    cache = engine.footprint(policies, prompt_of(context), context, batch)
    return Need(weights, engine.probe().workspace, cache.peak_bytes, cache.steady_bytes)
