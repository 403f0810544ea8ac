"""Several policies on one sequence: in which order they can act, and what they ask for together."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.cache.model_info import ModelInfo
from thrifty.cache.page_selection import PageSelection
from thrifty.cache.policy import CachePolicy
from thrifty.cache.rehearsing_policy import RehearsingPolicy
from thrifty.cache.statistics import Statistics
from thrifty.errors import RecipeError


def rehearsing(policies: Sequence[CachePolicy]) -> RehearsingPolicy | None:
    """The policy that runs the model before it decides, if there is one."""
    return next((policy for policy in policies if isinstance(policy, RehearsingPolicy)), None)


def layer_major(policies: Sequence[CachePolicy]) -> bool:
    """Whether the prompt must go layer by layer, each compressed before the next one starts."""
    return rehearsing(policies) is None and any(policy.compresses for policy in policies)


def check_order(policies: Sequence[CachePolicy]) -> None:
    """Raise RecipeError where the order of a recipe's policies cannot work."""
    _check_rehearsal(policies)
    _check_selection(policies)
    _check_causal(policies)
    _check_offloading(policies)
    quantiser: CachePolicy | None = None
    ragged: CachePolicy | None = None
    for policy in policies:
        if policy.traits.uniform and ragged is not None:
            raise RecipeError(
                f"cache technique '{policy.name}' counts the slots of a layer for all its heads, but '{ragged.name}' "
                f"before it leaves each head its own number: put '{policy.name}' before '{ragged.name}'"
            )
        ragged = policy if policy.traits.ragged else ragged
        if policy.traits.exact and quantiser is not None:
            raise RecipeError(
                f"cache technique '{policy.name}' needs exact keys and values, but '{quantiser.name}' before it stores "
                f"them in fewer bits: put '{policy.name}' before '{quantiser.name}'"
            )
        if policy.traits.quantises and quantiser is not None:
            raise RecipeError(
                f"cache techniques '{quantiser.name}' and '{policy.name}' both quantise: keep one of them"
            )
        if policy.traits.quantises:
            quantiser = policy


def _check_causal(policies: Sequence[CachePolicy]) -> None:
    """Policies of one sequence act while it is read, or when a prompt ends: not some so and some so."""
    acting = [policy for policy in policies if policy.causal or policy.compresses or policy.watches_decode]
    causal = next((policy for policy in acting if policy.causal), None)
    other = next((policy for policy in acting if not policy.causal), None)
    if causal is not None and other is not None:
        raise RecipeError(
            f"cache technique '{causal.name}' is causal and acts while a prompt is read, but '{other.name}' acts when "
            f"it ends: leave causal out, or leave '{other.name}' out"
        )


def _check_rehearsal(policies: Sequence[CachePolicy]) -> None:
    """A policy that rehearses sees the full cache, so it is the first to act; and no statistics are gathered then."""
    first = rehearsing(policies)
    if first is None:
        return
    place = policies.index(first)
    for policy in policies[:place]:
        if policy.compresses or policy.watches_decode:
            raise RecipeError(
                f"cache technique '{first.name}' judges the whole prompt, but '{policy.name}' before it changes it: "
                f"put '{first.name}' first"
            )
    for policy in policies[place + 1 :]:
        if isinstance(policy, RehearsingPolicy) or policy.watches_prompt:
            raise RecipeError(
                f"cache technique '{policy.name}' watches the prompt's attention, which is not gathered beside "
                f"'{first.name}': keep one of them"
            )


def _check_selection(policies: Sequence[CachePolicy]) -> None:
    """A row that selects pages bounds their scores by their keys alone, so nothing may be added to scores; and one
    policy says which.
    """
    selecting = [policy for policy in policies if policy.traits.selects]
    if len(selecting) > 1:
        raise RecipeError(
            f"cache techniques '{selecting[0].name}' and '{selecting[1].name}' both select what rows attend to: keep "
            "one of them"
        )
    biased = [policy for policy in policies if policy.traits.biases]
    if selecting and biased:
        raise RecipeError(
            f"cache technique '{selecting[0].name}' bounds scores by keys alone, but '{biased[0].name}' adds to them: "
            "keep one of them"
        )


def offloading(policies: Sequence[CachePolicy]) -> CachePolicy | None:
    """The policy by which what is stored lies on disk while steps read it, if there is one."""
    return next((policy for policy in policies if policy.traits.offloads), None)


def _check_offloading(policies: Sequence[CachePolicy]) -> None:
    """What moves everything to disk acts last, and beside nothing that needs all of it in memory at once."""
    last = offloading(policies)
    if last is None:
        return
    if policies[-1] is not last:
        raise RecipeError(
            f"cache technique '{last.name}' moves to disk what the others leave, but '{policies[-1].name}' comes "
            f"behind it: put '{last.name}' last, once"
        )
    for policy in policies[:-1]:
        rewrites = policy.watches_decode and not (policy.traits.whole_pages or policy.traits.quantises)
        reason = (
            "selects what rows attend to by pages that lie in memory"
            if policy.traits.selects
            else "judges the whole prompt in memory"
            if isinstance(policy, RehearsingPolicy)
            else "evicts single slots while decoding, and so rewrites all layers in memory"
            if rewrites
            else None
        )
        if reason is not None:
            raise RecipeError(f"cache technique '{policy.name}' {reason}, which '{last.name}' moves to disk: keep one")


def page_selection(policies: Sequence[CachePolicy], model: ModelInfo) -> PageSelection | None:
    """What rows that decode attend to where a policy says so. Raises RecipeError beside one that watches the attention
    of these rows, for they see no more than a part.
    """
    selecting = next((policy for policy in policies if policy.traits.selects), None)
    if selecting is None:
        return None
    for policy in policies:
        if policy.wants(model).decode:
            raise RecipeError(
                f"cache technique '{policy.name}' watches the attention of decoded rows, but with '{selecting.name}' "
                "they attend to selected pages only: keep one of them"
            )
    return selecting.selection(model)


def wanted(policies: Sequence[CachePolicy], model: ModelInfo) -> Statistics:
    """The union of what the policies want."""
    result = Statistics()
    for policy in policies:
        result = result | policy.wants(model)
    return result
