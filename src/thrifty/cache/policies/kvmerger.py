"""KVMerger: neighbours whose keys point the same way become one slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from thrifty.arrays import Flags, Floats
from thrifty.cache.edits import Edits, Groups
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.scores import best, reduce_group
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.traits import Traits
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView

CARD = Card(
    title="Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs on Long-Context Tasks",
    paper="arXiv:2407.08454",
    year=2024,
    mechanism=(
        "Merges runs of neighbours with similar keys into one slot each, weighted by a Gaussian kernel around the slot "
        "that is attended to most; the newest tokens and heavy hitters stay as they are."
    ),
    claim="Llama-2-7B-chat, 9 LongBench sets, 50 % of the cache: 35.02 (H2O 33.49); Mistral, 35 %: 35.04 (H2O 13.48)",
    limits=(
        "merges the prompt once; generated tokens are never merged",
        "with `keep` the similarity bound is chosen layer by layer to meet the budget (the paper: 0.75 everywhere)",
        "needs column sums: attention goes over the keys a second time",
    ),
)

BUDGETS = (0.0, 0.35, 0.5, 1.0)
RECENT = (0.0, 0.08, 0.17, 0.34)
HEAVY = (0.0, 0.02, 0.12, 0.24)
"""Protected shares at these budgets; those of 35 and 50 % are the paper's."""


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Kvmerger(CachePolicy):
    """keep: kept share of the prompt, mean over the layers. threshold: merge wherever the similarity exceeds it
    instead (published: 0.75); what is kept is then an outcome.

    recent, heavy: shares of a layer's slots that are never merged, the newest and those most attended to; None: the
    paper's for its budgets of 35 and 50 %, in between in proportion. sigma: of the Gaussian kernel. mass: what a merged
    slot of n tokens gets so that it weighs as much as they did: a logit bias of log n ("bias"), or a value n times as
    large, which leaves the softmax's sum short ("published"). group: how column sums of grouped query heads are
    reduced. first, last: global layers at either end that are left alone; with `keep` the others merge more.
    """

    keep: float = 0.5
    threshold: float | None = None
    recent: float | None = None
    heavy: float | None = None
    sigma: float = 5.0
    mass: Literal["published", "bias"] = "bias"
    group: Literal["sum", "mean", "max"] = "sum"
    first: int = 2
    last: int = 1

    traits = Traits(exact=True, ragged=True, biases=True)

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1 or (self.threshold is not None and not -1 <= self.threshold <= 1):
            raise RecipeError(
                f"kvmerger: keep = {self.keep}, threshold = {self.threshold}; use 0 < keep ≤ 1 and -1 ≤ threshold ≤ 1"
            )
        if self.sigma <= 0 or self.first < 0 or self.last < 0:
            raise RecipeError(
                f"kvmerger: sigma = {self.sigma}, first = {self.first}, last = {self.last}; use sigma > 0, first ≥ 0 "
                "and last ≥ 0"
            )
        recent, heavy = self.protected(self.keep)
        if recent < 0 or heavy < 0 or (self.threshold is None and recent + 2 * heavy > self.keep):
            raise RecipeError(
                f"kvmerger: recent = {recent:g} and heavy = {heavy:g} protect more than keep = {self.keep} leaves: "
                "each heavy hitter may keep a neighbour apart too; use shares ≥ 0 with recent + 2 · heavy ≤ keep"
            )

    def wants(self, model: ModelInfo) -> Statistics:
        """Column sums over the prompt's queries. Raises RecipeError where the layers cannot meet the budget."""
        self.share(model)
        return Statistics(column_sums=True)

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """Merge one layer's runs; the heads of a layer share one similarity bound."""
        edits = Edits()
        if stats.column_sums is None or layer.index not in self.merged_layers(layer.model):
            return edits
        share = self.share(layer.model)
        heads = range(kv.kv_heads)
        keys = [kv.keys(head) for head in heads]
        scores = [reduce_group(sums, self.group) for sums in stats.column_sums]
        links = self._links(keys, scores, share)
        for head in heads:
            if links[head].any():
                before = (keys[head], kv.values(head), kv.bias(head), scores[head])
                groups, key, value, bias = merged(*before, links[head], self.sigma, self.mass)
                edits.merge(groups, key, value, layer=layer.index, head=head, bias=bias)
        return edits

    def kept(self, prompt: int, generated: int = 0) -> int:
        """The share, mean over the layers; with a threshold nothing is certain."""
        bound = prompt if self.threshold is not None else int(self.keep * prompt) + 1
        return min(prompt, bound) + generated

    def merged_layers(self, model: ModelInfo) -> tuple[int, ...]:
        """The layers that are merged, of those that policies act on."""
        layers = model.policy_layers
        return layers[self.first : max(self.first, len(layers) - self.last)]

    def share(self, model: ModelInfo) -> float:
        """What a merged layer keeps, so that all global layers keep `keep` on average. Raises RecipeError."""
        total, merging = len(model.policy_layers), len(self.merged_layers(model))
        if self.threshold is not None or self.keep == 1 or not total:
            return self.keep
        share = 0.0 if not merging else (self.keep * total - (total - merging)) / merging
        if share <= 0:
            raise RecipeError(
                f"kvmerger: keep = {self.keep} of {total} layers cannot be met while first = {self.first} and "
                f"last = {self.last} of them stay whole; use keep above {(total - merging) / total:.2f}, or a smaller "
                "first and last"
            )
        return share

    def protected(self, share: float) -> tuple[float, float]:
        """Shares of a layer's slots that are never merged, newest and heavy, where it keeps `share`."""
        recent = _between(share, RECENT) if self.recent is None else self.recent * share / self.keep
        heavy = _between(share, HEAVY) if self.heavy is None else self.heavy * share / self.keep
        return recent, heavy

    def _links(self, keys: list[Floats], scores: list[Floats], share: float) -> list[Flags]:
        """For every head, bool [slots − 1]: whether slot i is merged with slot i + 1."""
        recent, heavy = self.protected(share)
        similar, free = [], []
        for own, score in zip(keys, scores, strict=True):
            n = len(own)
            fixed = protected(score, _of(recent, n), _of(heavy, n))
            similar.append(neighbours(own))
            free.append(~(fixed[1:] | fixed[:-1]))
        if self.threshold is not None:
            return [(cosines > self.threshold) & may for cosines, may in zip(similar, free, strict=True)]
        most = sum(len(own) - max(1, _of(share, len(own))) for own in keys if len(own))
        pooled = np.concatenate([np.where(may, cosines, -np.inf) for cosines, may in zip(similar, free, strict=True)])
        links = np.zeros(len(pooled), bool)
        links[best(pooled, min(most, int(sum(may.sum() for may in free))))] = True
        return np.split(links, np.cumsum([len(cosines) for cosines in similar])[:-1])


def protected(scores: Floats, recent: int, heavy: int) -> Flags:
    """bool [slots]: the newest `recent` slots, and the `heavy` older ones with the largest `scores` [slots]."""
    n = len(scores)
    fixed = np.zeros(n, bool)
    fixed[n - recent :] = True
    fixed[best(scores[: n - recent], heavy)] = True
    return fixed


def neighbours(keys: Floats) -> Floats:
    """[slots − 1]: cosine of the angle between each key [slots, d] and the next (§4.1)."""
    length = np.sqrt(np.einsum("nd,nd->n", keys, keys))
    unit = keys / np.maximum(length, 1e-12)[:, None]
    return np.einsum("nd,nd->n", unit[:-1], unit[1:])


def merged(
    keys: Floats, values: Floats, bias: Floats, scores: Floats, links: Flags, sigma: float, mass: str
) -> tuple[Groups, Floats, Floats, Floats | None]:
    """The merged slots of one head (§4.2): groups, keys and values [groups, d], logit biases [groups] or None.

    The pivot p of a set is its slot of the largest score; g_i = exp(−‖k_p − k_i‖² / 2σ²), w_i = g_i / Σg, key Σ w k.
    keys, values: [n, d]; bias: [n], what the slots have already; scores: [n]; links: bool [n − 1].
    """
    run = np.concatenate((np.zeros(1, np.int64), np.cumsum(~links)))
    lengths = np.bincount(run)
    members, sizes = np.flatnonzero(lengths[run] > 1), lengths[lengths > 1]
    starts, group = np.cumsum(sizes) - sizes, np.repeat(np.arange(len(sizes)), sizes)
    keys, values, bias, scores = keys[members], values[members], bias[members], scores[members]

    at_best = np.flatnonzero(scores == np.maximum.reduceat(scores, starts)[group])
    pivot = at_best[np.searchsorted(at_best, starts)]

    apart = keys - keys[pivot[group]]
    kernel = np.exp(-np.einsum("nd,nd->n", apart, apart) / (2 * sigma**2))
    weights = (kernel / np.add.reduceat(kernel, starts)[group])[:, None]
    key, value = np.add.reduceat(weights * keys, starts), np.add.reduceat(weights * values, starts)

    number = sizes.astype(np.float32)
    log_mass = np.log(np.add.reduceat(np.exp(bias), starts))
    if mass == "bias":
        return Groups(members, sizes), key, value, log_mass
    mean = log_mass - np.log(number)
    return Groups(members, sizes), key, value * number[:, None], mean if bias.any() else None


def _of(share: float, n: int) -> int:
    """Whole slots; a share that was computed may be a rounding below what it stands for."""
    return int(share * n + 1e-6)


def _between(share: float, at: tuple[float, ...]) -> float:
    """Linear between the paper's two settings, in proportion outside."""
    for place in range(1, len(BUDGETS)):
        if share <= BUDGETS[place]:
            low, high = BUDGETS[place - 1], BUDGETS[place]
            return at[place - 1] + (share - low) / (high - low) * (at[place] - at[place - 1])
    return at[-1]
