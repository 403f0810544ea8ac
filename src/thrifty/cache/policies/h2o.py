"""H2O: the newest tokens and the heavy hitters of accumulated attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from thrifty.arrays import Floats
from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.scores import reduce_group
from thrifty.cache.scoring_policy import ScoringPolicy
from thrifty.cache.statistics import Statistics, Stats
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView

CARD = Card(
    title="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    paper="arXiv:2306.14048",
    year=2023,
    mechanism=(
        "Keeps the newest tokens and those with the largest sum of attention over all queries so far, half "
        "the budget each."
    ),
    claim="near full quality with 20 % of the cache; throughput up to 29 times DeepSpeed and Accelerate",
    limits=(
        "evicts every 64 tokens, the paper at every step: up to 127 tokens above the budget in between",
        "with grouped queries the sums of a group are reduced by `group` (the paper has one query head a KV head)",
        "needs column sums: attention goes over the keys a second time",
        (
            "after a quantising technique, tokens evicted while decoding free bytes only where a whole page goes: "
            'no byte budget of a request can rely on it (capacity = "budget" is refused)'
        ),
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class H2o(ScoringPolicy):
    """keep: budget as a share of the prompt, fixed when it ends (§5: 20 %); capacity: a budget in tokens instead, or
    "budget": as many as the request's byte budget holds.

    recent: the share of the budget that goes to the newest tokens. group: how scores of grouped query heads are
    reduced.
    """

    keep: float = 0.2
    recent: float = 0.5
    group: Literal["sum", "mean", "max"] = "sum"

    budgeted = "capacity"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.recent <= 1:
            raise RecipeError(f"h2o: recent = {self.recent}; use a share of the budget, 0 ≤ recent ≤ 1")

    def wants(self, model: ModelInfo) -> Statistics:
        """Column sums over the prompt's queries and, from then on, over generated ones."""
        return Statistics(column_sums=True, decode=True)

    def newest(self, prompt: int, stats: Stats | None = None) -> int:
        """A share of the budget."""
        return int(self.slots(prompt) * self.recent)

    def budget(self, count: int, newest: int) -> int:
        """The rest of it."""
        return self.slots(count) - newest

    def budgets(self, layer: LayerInfo, counts: list[int], newest: int) -> list[int]:
        """Of the prompt, whatever was generated since."""
        return [self.budget(layer.prompt, newest)] * len(counts)

    def score(self, kv: LayerView, head: int, stats: Stats) -> Floats:
        """Attention received from all queries so far (§4.1), reduced over the query group."""
        assert stats.column_sums is not None, "the policy asked for them"
        return reduce_group(stats.column_sums[head], self.group)

    def after_decode(self, layers: list[LayerView], stats: list[Stats]) -> Edits | None:
        """Evict down to the budget again, layer by layer."""
        edits = Edits()
        for view, own in zip(layers, stats, strict=True):
            self.evict(edits, view, own)
        return edits

    def kept(self, prompt: int, generated: int = 0) -> int:
        """The budget, and a period's tokens between two evictions."""
        return min(prompt + generated, self.slots(prompt) + min(generated, self.period))
