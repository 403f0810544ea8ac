"""Which recipes a model of another library can run with: cache policies that act on what its attention shows."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty import registry
from thrifty.cache.composition import check_order
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.rehearsing_policy import RehearsingPolicy
from thrifty.errors import RecipeError
from thrifty.recipe import Recipe

INSTEAD = "serve the model with Thrifty's engine (`thrifty.Thrifty`), or leave it out"


def policies_of(recipe: Recipe, model: ModelInfo) -> tuple[CachePolicy, ...]:
    """The recipe's cache policies. Raises RecipeError that names what needs the engine or does not suit the model."""
    for stage, needs in (("weights", "changes the weights"), ("decoding", "runs several rows and takes some back")):
        for table in getattr(recipe, stage):
            raise RecipeError(
                f"{stage} technique '{table.get('technique')}' {needs}, which needs the engine: {INSTEAD}"
            )
    policies = tuple(registry.build("cache", table) for table in recipe.cache)
    check_order(policies)
    for policy in policies:
        problem = _needs_engine(policy)
        if problem is not None:
            raise RecipeError(f"cache technique '{policy.name}' {problem}, which needs the engine: {INSTEAD}")
        policy.check(model)
    return policies


def for_prompt(policies: Sequence[CachePolicy], model: ModelInfo, tokens: Sequence[int]) -> tuple[CachePolicy, ...]:
    """The policies as they act on a prompt. Raises PromptError or RecipeError where it cannot be compressed."""
    chosen = tuple(policy.for_prompt(model, tokens) for policy in policies)
    for policy in chosen:
        policy.check_prompt(model, len(tokens))
    return chosen


def _needs_engine(policy: CachePolicy) -> str | None:
    """What a policy does that a model's own forward pass cannot give it; None where there is nothing."""
    if isinstance(policy, RehearsingPolicy):
        return "runs the model behind the prompt again"
    if policy.causal:
        return "acts on all layers at every 128 tokens of the prompt (causal = true)"
    if policy.renumbers:
        return "rotates keys to other positions"
    if policy.traits.selects:
        return "lets every row choose its pages"
    if policy.open_capacity:
        return f"takes {policy.budgeted} from a request's byte budget"
    return None
