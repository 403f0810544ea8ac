"""MiniKV: the heavy hitters and the newest tokens of a prompt, more of them in lower layers, all in 2 bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.cache.edits import Edits
from thrifty.cache.exact_slots import exact_from_end, store_ranges
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.scores import best_and_newest, reduce_group
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.traits import Traits
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.formats.kv import PAGE, code_format
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView

CARD = Card(
    title="MiniKV: Pushing the Limits of LLM Inference via 2-Bit Layer-Discriminative KV Cache",
    paper="arXiv:2411.18077",
    year=2024,
    mechanism=(
        "Keeps a prompt's heavy hitters (a pyramid over layers) and newest tokens for good, in 2 bits a number with a "
        "scale for 16; generated tokens are only quantised, 128 at a time."
    ),
    claim="the KV cache 86 % smaller at over 98.5 % of the quality (Llama-2-7B-chat, LongBench 34.65 of 35.19)",
    limits=(
        (
            "generated tokens move by pages of 64: where several tokens are accepted at once, those behind the last "
            "page's border wait for the next 128"
        ),
        "all kept tokens become codes; the paper leaves the last n mod 16 exact, which would take a page a layer",
        (
            "one set of slots a KV head: the sums of a query group are reduced by `group` (the paper has one query "
            "head a KV head; the authors' code repeats keys and values for every query head first)"
        ),
        "needs column sums: attention goes over the prompt's keys a second time",
        "a second prompt in the same sequence chooses among its own tokens; what is in codes already stays",
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Minikv(CachePolicy):
    """heavy, recent: kept shares of the prompt (of heavy hitters the mean over layers), 0.25 each as in the paper.

    layers: "pyramid" (heavy falls linearly from 2·heavy − heavy/delta in the first global layer to heavy/delta in the
    last) or "uniform". bits, subchannel: of the codes, and how many neighbours share a scale. residual: generated
    tokens that gather before they are quantised, a multiple of 64. group: how sums of grouped query heads are reduced;
    no code of the authors does it. "max" is held beside "sum" by `benchmarks/query_group.py`.
    """

    heavy: float = 0.25
    recent: float = 0.25
    layers: Literal["pyramid", "uniform"] = "pyramid"
    delta: float = 7.0
    bits: Literal[2, 4, 8] = 2
    subchannel: Literal[16, 32] = 16
    residual: int = 128
    group: Literal["sum", "mean", "max"] = "sum"

    traits = Traits(quantises=True)

    def __post_init__(self) -> None:
        if not (0 <= self.heavy <= 1 and 0 <= self.recent <= 1 and self.heavy + self.recent > 0):
            raise RecipeError(
                f"minikv: heavy = {self.heavy}, recent = {self.recent}; use shares of 0 to 1 that are not both 0"
            )
        if not (math.isfinite(self.delta) and self.delta >= 1):
            raise RecipeError(f"minikv: delta = {self.delta}; use 1 (all layers alike) or more, 7 as in the paper")
        if self.residual < PAGE or self.residual % PAGE:
            raise RecipeError(f"minikv: residual = {self.residual}; use a positive multiple of {PAGE}")
        if (self.bits, self.subchannel) == (8, 16):
            raise RecipeError("minikv: bits = 8, subchannel = 16; use subchannel 32 with 8 bits")

    @property
    def format(self) -> str:
        """The format of kept slots."""
        return code_format(self.bits, self.subchannel)

    def wants(self, model: ModelInfo) -> Statistics:
        """Column sums over the prompt's queries."""
        return Statistics(column_sums=True)

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """Keep the layer's heavy hitters and newest slots of what is exact, and store them as codes."""
        edits = Edits()
        if stats.column_sums is None:
            return edits
        heads = range(kv.kv_heads)
        coded = [_coded(kv, head) for head in heads]
        kept = [self._chosen(layer, sums, first) for sums, first in zip(stats.column_sums, coded, strict=True)]
        if any(len(kept[head]) < kv.count(head) for head in heads):
            edits.keep(kept, layer=layer.index)
        if len(set(coded)) == 1:
            return edits.store(coded[0], None, self.format, layer=layer.index)
        for head in heads:
            edits.store(coded[head], None, self.format, layer=layer.index, head=head)
        return edits

    def after_decode(self, layers: list[LayerView], stats: list[Stats]) -> Edits | None:
        """Quantise all generated pages once `residual` tokens of them have gathered; nothing is evicted."""
        return store_ranges(layers, self._gathered, self.format)

    def heavy_share(self, place: int, layers: int) -> float:
        """Share of the prompt that the `place`-th of `layers` global layers keeps as heavy hitters."""
        if self.layers == "uniform" or layers < 2:
            return self.heavy
        last = self.heavy / self.delta
        first = 2 * self.heavy - last
        return first + (last - first) * place / (layers - 1)

    def kept(self, prompt: int, generated: int = 0) -> int:
        """The mean layer's share of the prompt, and every generated token."""
        return min(prompt, math.ceil(self.heavy * prompt) + self._recent(prompt)) + generated

    def kept_in_layer(self, prompt: int, generated: int = 0) -> int:
        """The first layer's share, and every generated token."""
        return min(prompt, math.ceil(self.heavy_share(0, 2) * prompt) + self._recent(prompt)) + generated

    def stored(self, slots: int) -> dict[str, int]:
        """Codes, all of them at best; up to `residual` exact tokens, and what a step beyond the page's border adds."""
        return {self.format: slots, "": min(slots, self.residual + PAGE)}

    def _recent(self, count: int) -> int:
        return max(1, int(self.recent * count))

    def _chosen(self, layer: LayerInfo, sums: Floats, first: int) -> Integers:
        """Sorted slots: the first `first`, and what is kept of the others. sums: [group, slots]."""
        count = sums.shape[1] - first
        layers = layer.model.policy_layers
        heavy = int(self.heavy_share(layers.index(layer.index), len(layers)) * count)
        scores = reduce_group(sums[:, first:], self.group)
        chosen = best_and_newest(scores, heavy, count, self._recent(count))
        return np.concatenate((np.arange(first), first + chosen))

    def _gathered(self, view: LayerView, head: int) -> list[tuple[int, int | None]]:
        """All of a head's exact stretches once they hold `residual` slots, counted from its end, oldest first."""
        exact = exact_from_end(view, head)
        if not exact or -exact[-1].start < self.residual:
            return []
        return [(stretch.start, stretch.stop or None) for stretch in exact[::-1]]


def _coded(kv: LayerView, head: int) -> int:
    """A head's slots up to the end of its last codes."""
    return max((stretch.stop for stretch in kv.stretches(head) if stretch.quantised), default=0)
