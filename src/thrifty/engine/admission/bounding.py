"""A request's own byte budget (`Request.cache_bytes`): capacities that fit it, and refusals that say what would."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from thrifty.bisection import largest
from thrifty.cache.policy import CachePolicy
from thrifty.errors import BudgetError, RecipeError
from thrifty.storage.budget import format_size

Need = Callable[[Sequence[CachePolicy], int], int]
"""(policies, tokens in all) → the most bytes that the request holds at any moment."""


def with_capacity(policies: Sequence[CachePolicy], slots: int) -> tuple[CachePolicy, ...]:
    """The same policies, those that leave their capacity to the budget with this many slots a head."""
    return tuple(policy.with_capacity(slots) if policy.open_capacity else policy for policy in policies)


def taken_over(policies: Sequence[CachePolicy], held: Sequence[CachePolicy]) -> bool:
    """Whether the policies are those that a session holds, but for capacities that they leave to the budget."""
    return len(policies) == len(held) and all(
        type(policy) is type(own)
        and own == (policy.with_capacity(getattr(own, str(policy.budgeted))) if policy.open_capacity else policy)
        for policy, own in zip(policies, held, strict=True)
    )


def fitted(policies: Sequence[CachePolicy], budget: int | None, need: Need, total: int) -> tuple[CachePolicy, ...]:
    """The policies with the largest capacity with which `total` tokens stay within `budget`; where nothing fits, with
    the smallest one.

    Raises RecipeError where the recipe leaves a capacity to a budget that the request does not have, or that no
    capacity keeps.
    """
    asked = [policy for policy in policies if policy.open_capacity]
    if not asked:
        return tuple(policies)
    first = asked[0]
    if budget is None:
        raise RecipeError(_without_budget(first))
    quantiser = next((policy for policy in policies if policy.traits.quantises), None)
    if quantiser is not None and any(policy.watches_decode and not policy.traits.whole_pages for policy in asked):
        raise RecipeError(
            f'{first.name}: {first.budgeted} = "budget" cannot be kept with {quantiser.name}: slots that are evicted '
            "one by one leave holes in pages of codes, whose bytes come free only with the whole page; use streaming, "
            f"which lets go of whole pages, or leave {quantiser.name} out"
        )
    capacity = largest(1, total, lambda tokens: need(with_capacity(policies, tokens), total) <= budget)
    return with_capacity(policies, capacity)


def check(policies: Sequence[CachePolicy], budget: int, need: Need, prompt: int, total: int) -> None:
    """Raise BudgetError where `prompt` tokens grown to `total` may take more than `budget`, with what would do."""
    wanted = need(policies, total)
    if wanted <= budget:
        return
    fitting = longest(policies, budget, need, prompt, total)
    answer = f"the longest answer that fits has {fitting - prompt} tokens" if fitting else "no answer fits"
    raise BudgetError(
        f"cache_bytes = {budget} ({format_size(budget)}) does not hold this request: its cache, statistics and the "
        f"hidden state of its prompt may take {wanted} bytes ({format_size(wanted)}) for {prompt} + {total - prompt} "
        f"tokens; {answer}; use cache_bytes = {wanted} or more, or a recipe that keeps less"
    )


def longest(policies: Sequence[CachePolicy], budget: int, need: Need, prompt: int, total: int) -> int:
    """The most tokens in all, above `prompt` and at most `total`, that stay within the budget; 0: none."""
    fitting = largest(prompt, total, lambda tokens: need(policies, tokens) <= budget)
    return fitting if fitting > prompt else 0


def _without_budget(policy: CachePolicy) -> str:
    return (
        f'{policy.name}: {policy.budgeted} = "budget" needs a byte budget of the request: give it one (cache_bytes, or '
        f"--cache-memory of `thrifty run`), or write a number for {policy.budgeted}"
    )
