"""What reading a prompt costs under cache policies beyond the prefill itself: time in prefills, and what must be
measured of the model before any prompt is read.

The figures are of `docs/kv-cache.md` (SmolLM2-135M, 6000 tokens; the full cache reads 1536 tokens a second, `kvzip`
425, `h2o` 900, `fastgen` 619, what looks at a few newest queries 1300).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from thrifty.cache.composition import rehearsing, wanted

if TYPE_CHECKING:
    from thrifty.cache.model_info import ModelInfo
    from thrifty.cache.policy import CachePolicy
    from thrifty.frontier.candidates import Candidate

REHEARSED = 1.7
"""Prefills more where the prompt is repeated: as many rows once more, which see the prompt and are scored."""
SUMMED = 0.3
"""Prefills more for column sums: attention goes over the keys a second time."""
PROFILED = 0.6
"""Prefills more where the attention of many queries is looked at in full."""
MANY = 128  # queries


def prefills(policies: Sequence[CachePolicy], model: ModelInfo) -> float:
    """Prefills that reading a prompt takes under policies, the plain one being 1; what every compression takes is left
    out. Raises RecipeError where a policy cannot act on the model.
    """
    need = wanted(policies, model)
    count = 1.0
    if rehearsing(policies) is not None:
        count += REHEARSED
    if need.column_sums:
        count += SUMMED
    if need.queries == "all" or (isinstance(need.queries, int) and need.queries >= MANY):
        count += PROFILED
    return count


def needed(candidates: Iterable[Candidate]) -> list[str]:
    """The kinds of head scores that candidates' techniques need, see `thrifty heads`."""
    policies = (policy for candidate in candidates for policy in candidate.recipe.techniques("cache"))
    return list(dict.fromkeys(str(kind) for policy in policies if (kind := getattr(policy, "kind", None))))
