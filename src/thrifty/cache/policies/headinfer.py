"""HeadInfer: the cache lies on disk; attention reads it back head group by head group, one ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.cache.edits import Edits
from thrifty.cache.policy import CachePolicy
from thrifty.cache.traits import Traits
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.model_info import LayerInfo, ModelInfo
    from thrifty.cache.statistics import Stats
    from thrifty.cache.view import LayerView

CARD = Card(
    title="HeadInfer: Memory-Efficient LLM Inference by Head-wise Offloading",
    paper="arXiv:2502.12574",
    year=2025,
    mechanism=(
        "Holds the keys and values of one group of KV heads in memory, and all others a tier below; while a group is "
        "attended to, the next one is fetched. Nothing is lost."
    ),
    claim="Llama-3-8B with 1M tokens: 128 GB of cache become 1 GB on the GPU, 207 GB in all become 17 GB",
    limits=(
        "the tier above is memory and the one below the disk, where the paper has a GPU and the host's memory",
        (
            "the prompt is computed layer by layer, and its layer in work is whole in memory; the paper computes it "
            "chunk by chunk and fetches what lies before each chunk head by head"
        ),
        (
            "the paper groups heads by the length of the context (one group up to 500K tokens, 8 at 4M); here the "
            "size of a group is an option of its own"
        ),
        (
            "a second prompt of one sequence begins a page of its own in models with sliding-window layers: the same "
            "slots, summed in another order than in the full cache"
        ),
        "new tokens stay in memory in pages of 64, of all heads; the paper writes each token's heads back at once",
        "a decode step reads the whole cache from the disk: its bandwidth bounds the speed",
        (
            "refused beside policies that select pages (quest), rehearse (kvzip) or evict single slots while decoding "
            "(h2o, fastgen); sliding-window layers stay in memory"
        ),
        (
            "the official code has single heads alone and growing, pageable buffers; this follows the paper: two "
            "buffers, made once for a length"
        ),
        (
            "the abstract was read; what is said of groups by length and of the official code is from notes of both, "
            "and the paper's section numbers were not checked"
        ),
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Headinfer(CachePolicy):
    """heads: KV heads of a group, which are read together (adaptive head grouping: more heads are larger reads and
    larger buffers; a number beyond the model's means whole layers).

    Output is that of the same recipe without it, to the bit.
    """

    heads: int = 1

    traits = Traits(offloads=True)

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise RecipeError(f"headinfer: heads = {self.heads}; use the KV heads of a group, 1 or more")

    @property
    def head_group(self) -> int:
        """See `CachePolicy`."""
        return self.heads

    def check(self, model: ModelInfo) -> None:
        """Some layer must attend without a window."""
        if not model.policy_layers:
            raise RecipeError("headinfer: every layer of this model has a sliding window or a state: nothing is moved")

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """All of a layer that is complete leaves memory (head-wise offloading)."""
        return Edits().move(0, None, "disk", layer=layer.index)

    def after_decode(self, layers: list[LayerView], stats: list[Stats]) -> Edits:
        """The pages that filled since."""
        return Edits().move(0, None, "disk")
