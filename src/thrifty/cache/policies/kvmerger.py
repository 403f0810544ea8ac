"""KVMerger: neighbours whose keys point the same way become one slot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from thrifty.arrays import Flags, Floats, Integers
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
        "made from reviews and reading notes of the paper; there is no official code",
        "merges the prompt once; generated tokens are never merged",
        (
            "a merged value is n times as large (`mass` published), so the softmax's sum falls short of the n slots; "
            '`mass = "bias"` is Thrifty\'s own: log n on the logit, which is exact where keys agree'
        ),
        (
            "sigma is printed as a sum of the kernel's own values, which it defines: read as Σ‖k_p − k_i‖ / (√2·n) of "
            "a set, which gives about the 5 of the paper's ablation; a number fixes it"
        ),
        (
            "protected shares are printed with a per cent sign (0.17 and 0.12 %) and read as shares; at other budgets "
            "they are interpolated, by the share that a merged layer keeps"
        ),
        "with `keep` the similarity bound is chosen layer by layer to meet the budget (the paper: 0.75 everywhere)",
        "needs column sums: attention goes over the keys a second time",
    ),
)

PUBLISHED = 0.75
"""The paper's bound of similarity."""
BUDGETS = (0.0, 0.35, 0.5, 1.0)
RECENT = (0.0, 0.08, 0.17, 0.34)
HEAVY = (0.0, 0.02, 0.12, 0.24)
"""Protected shares at these budgets; those of 35 and 50 % are the paper's."""
TINY = 1e-30
"""Keeps the kernel of a set of equal keys, whose sigma is 0, at 1."""


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Kvmerger(CachePolicy):
    """threshold: merge wherever the similarity of neighbours exceeds it (the paper's 0.75 where neither is given);
    what is kept is an outcome. keep: kept share of the prompt instead, mean over the layers.

    recent, heavy: shares of a layer's slots that are never merged, the newest and those most attended to; None: the
    paper's for its budgets of 35 and 50 %, in between in proportion (with a threshold: of 50 %). sigma: of the Gaussian
    kernel; None: by the paper's formula, set by set. mass: what a merged slot of n tokens gets so that it weighs as
    much as they did: a value n times as large ("published"), which leaves the softmax's sum short, or a logit bias of
    log n ("bias"). group: how column sums of grouped query heads are reduced. first, last: global layers at either end
    that are left alone; with `keep` the others merge more.
    """

    keep: float | None = None
    threshold: float | None = None
    recent: float | None = None
    heavy: float | None = None
    sigma: float | None = None
    mass: Literal["published", "bias"] = "published"
    group: Literal["sum", "mean", "max"] = "sum"
    first: int = 2
    last: int = 1

    traits = Traits(exact=True, ragged=True, biases=True)

    def __post_init__(self) -> None:
        if self.keep is not None and self.threshold is not None:
            raise RecipeError(
                f"kvmerger: keep = {self.keep} and threshold = {self.threshold}: one follows from the other; use keep "
                "for a budget, or threshold for a bound of similarity"
            )
        if (self.keep is not None and not 0 < self.keep <= 1) or not -1 <= self.bound <= 1:
            raise RecipeError(
                f"kvmerger: keep = {self.keep}, threshold = {self.threshold}; use 0 < keep ≤ 1 or -1 ≤ threshold ≤ 1"
            )
        if (self.sigma is not None and self.sigma <= 0) or self.first < 0 or self.last < 0:
            raise RecipeError(
                f"kvmerger: sigma = {self.sigma}, first = {self.first}, last = {self.last}; use sigma > 0, first ≥ 0 "
                "and last ≥ 0"
            )
        recent, heavy = self.protected(self._budget)
        if recent < 0 or heavy < 0 or (self.keep is not None and recent + 2 * heavy > self.keep):
            raise RecipeError(
                f"kvmerger: recent = {recent:g} and heavy = {heavy:g} protect more than keep = {self.keep} leaves: "
                "each heavy hitter may keep a neighbour apart too; use shares ≥ 0 with recent + 2 · heavy ≤ keep"
            )

    @property
    def bound(self) -> float:
        """The similarity above which neighbours merge, where no budget decides."""
        return PUBLISHED if self.threshold is None else self.threshold

    @property
    def _budget(self) -> float:
        """The budget whose protected shares count."""
        return 0.5 if self.keep is None else self.keep

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
        bound = prompt if self.keep is None else int(self.keep * prompt) + 1
        return min(prompt, bound) + generated

    def merged_layers(self, model: ModelInfo) -> tuple[int, ...]:
        """The layers that are merged, of those that policies act on."""
        layers = model.policy_layers
        return layers[self.first : max(self.first, len(layers) - self.last)]

    def share(self, model: ModelInfo) -> float:
        """What a merged layer keeps, so that all global layers keep `keep` on average; with a threshold the budget
        whose protected shares count. Raises RecipeError.
        """
        total, merging = len(model.policy_layers), len(self.merged_layers(model))
        if self.keep is None or self.keep == 1 or not total:
            return self._budget
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
        scale = share / self._budget
        recent = _between(share, RECENT) if self.recent is None else self.recent * scale
        heavy = _between(share, HEAVY) if self.heavy is None else self.heavy * scale
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
        if self.keep is None:
            return [(cosines > self.bound) & may for cosines, may in zip(similar, free, strict=True)]
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
    keys: Floats, values: Floats, bias: Floats, scores: Floats, links: Flags, sigma: float | None, mass: str
) -> tuple[Groups, Floats, Floats, Floats | None]:
    """The merged slots of one head (§4.2): groups, keys and values [groups, d], logit biases [groups] or None.

    The pivot p of a set is its slot of the largest score; g_i = exp(−‖k_p − k_i‖² / 2σ²), w_i = g_i / Σg, key Σ w k.
    σ: `sigma`, or of each set Σ‖k_p − k_i‖ / (√2·n) where that is None. keys, values: [n, d]; bias: [n], what the slots
    have already; scores: [n]; links: bool [n − 1].
    """
    run = np.concatenate((np.zeros(1, np.int64), np.cumsum(~links)))
    lengths = np.bincount(run)
    members, sizes = np.flatnonzero(lengths[run] > 1), lengths[lengths > 1]
    starts, group = np.cumsum(sizes) - sizes, np.repeat(np.arange(len(sizes)), sizes)
    keys, values, bias, scores = keys[members], values[members], bias[members], scores[members]

    at_best = np.flatnonzero(scores == np.maximum.reduceat(scores, starts)[group])
    pivot = at_best[np.searchsorted(at_best, starts)]

    apart = keys - keys[pivot[group]]
    kernel = _kernel(np.einsum("nd,nd->n", apart, apart), starts, sizes, sigma)
    weights = (kernel / np.add.reduceat(kernel, starts)[group])[:, None]
    key, value = np.add.reduceat(weights * keys, starts), np.add.reduceat(weights * values, starts)

    number = sizes.astype(np.float32)
    log_mass = np.log(np.add.reduceat(np.exp(bias), starts))
    if mass == "bias":
        return Groups(members, sizes), key, value, log_mass
    mean = log_mass - np.log(number)
    return Groups(members, sizes), key, value * number[:, None], mean if bias.any() else None


def _kernel(squares: Floats, starts: Integers, sizes: Integers, sigma: float | None) -> Floats:
    """exp(−d²/2σ²) fp32 [n] of squared distances to the pivot, in sets that begin at `starts`."""
    if sigma is not None:
        return np.exp(-squares / (2 * sigma**2))
    own = np.add.reduceat(np.sqrt(squares), starts) / (math.sqrt(2) * sizes.astype(np.float32))
    widths = np.maximum(2 * np.repeat(own, sizes) ** 2, TINY)
    return np.exp(-squares / widths).astype(np.float32)


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
