"""FastGen: every head keeps what its own attention map needs, by the first of five policies that recovers it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from thrifty.arrays import Flags, Floats, Integers
from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.scores import attention_map, best
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.traits import Traits
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView

CARD = Card(
    title="Model Tells You What to Discard: Adaptive KV Cache Compression for LLMs",
    paper="arXiv:2310.01801",
    year=2023,
    mechanism=(
        "Profiles every head when the prompt ends and gives it the cheapest of five policies (special tokens; "
        "+ punctuation; + frequent; + local; full) that recovers its attention map; decoding keeps to it."
    ),
    claim="Llama 65B: 44.9 % of the cache pruned at a win rate of 44.2 % (T = 0.95); 7B: 16.9 % at 47.4 % (T = 0.98)",
    limits=(
        "how much is kept is an outcome: admission reserves the full cache",
        (
            "profiles with the newest `profile` queries (at most half the prompt), the paper with all: column sums "
            "alone do not know the local band"
        ),
        (
            "the paper leaves the norm of |A − softmax(QK_C)| open: here half the sum of differences, which is the "
            "attention mass on dropped columns"
        ),
        "evicts every 64 tokens, the paper at every step: up to 127 tokens more a head in between",
        "a prompt without control tokens has no special ones: text without a chat template or BOS",
        "with grouped queries every query head of a KV head must be recovered (`group`); the paper has one",
        (
            "needs column sums, and the profile is attention in fp32: at 6000 tokens SmolLM2-135M prefills at 0.4 of "
            "the full cache's rate and decodes no faster (`docs/kv-cache.md`; the paper: profiling is at most 0.35 % "
            "of a run)"
        ),
    ),
)

SPECIAL, PUNCTUATION, FREQUENT, LOCAL, FULL = range(5)
"""The ordered candidates (§4.2): each keeps what those before it keep, and more."""

RUNG = "candidate"
BLOCK = 32
"""Profiled queries whose probabilities are held at once."""


@dataclass(frozen=True)
class Columns:
    """What the candidates keep of one head's slots. lasting: bool [3, slots] of those that no query's place changes;
    positions: int64 [slots], rising; span: tokens right before a query that are local to it.
    """

    lasting: Flags
    positions: Integers
    span: int

    def kept(self, candidate: int, place: int) -> Flags:
        """bool [slots]: what the query at position `place` finds under a candidate."""
        if candidate == FULL:
            return np.ones_like(self.lasting[0])
        if candidate == LOCAL:
            return self.lasting[FREQUENT] | (self.positions >= place - self.span)
        return self.lasting[candidate]

    def recovered(self, probabilities: Floats, places: Integers) -> Floats:
        """fp32 [4, heads]: sum over queries of the attention mass on what the candidates but the full one keep.

        probabilities: [heads, queries, slots] of queries at `places` int64 [queries]. A query always has its own slot.
        """
        sums = probabilities.sum(axis=1)
        mass = np.stack([(sums * kept).sum(axis=1) for kept in (*self.lasting, self.lasting[FREQUENT])])
        own = np.searchsorted(self.positions[:-1], places)
        rows = np.flatnonzero(self.positions[own] == places)
        for candidate, kept in enumerate(self.lasting):
            mass[candidate] += (probabilities[:, rows, own[rows]] * ~kept[own[rows]]).sum(axis=1)
        mass[LOCAL] += self._fresh(sums, probabilities, places)
        return mass

    def _fresh(self, sums: Floats, probabilities: Floats, places: Integers) -> Floats:
        """fp32 [heads]: the mass on what is near and not frequent: of `sums` where it is near to all queries."""
        others = ~self.lasting[FREQUENT]
        nearest = self.positions >= places.max() - self.span
        some = np.flatnonzero(others & ~nearest & (self.positions >= places.min() - self.span))
        near = self.positions[some] >= places[:, None] - self.span
        return (sums * (others & nearest)).sum(axis=1) + (probabilities[:, :, some] * near).sum(axis=(1, 2))


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Fastgen(CachePolicy):
    """recovery: T, the share of attention that a head's policy must keep (the paper: 0.91 to 0.98).

    local: r_l, the local span as a share of the prompt. frequent: r_f, heavy hitters as a share of the present length.
    profile: the newest queries that are looked at. group: whether every query head of a KV head must be recovered
    ("min"), or their mean.
    """

    recovery: float = 0.95
    local: float = 0.3
    frequent: float = 0.3
    profile: int = 256
    group: Literal["min", "mean"] = "min"

    traits = Traits(exact=True, ragged=True)

    def __post_init__(self) -> None:
        if not 0 < self.recovery <= 1 or self.profile < 1:
            raise RecipeError(
                f"fastgen: recovery = {self.recovery}, profile = {self.profile}; use 0 < recovery ≤ 1 (the paper: 0.91 "
                "to 0.98) and profile ≥ 1"
            )
        if not 0 <= self.local <= 1 or not 0 <= self.frequent <= 1:
            raise RecipeError(
                f"fastgen: local = {self.local}, frequent = {self.frequent}; use shares from 0 to 1 (the paper: 0.3)"
            )
        if self.group not in ("min", "mean"):
            raise RecipeError(f'fastgen: group = "{self.group}"; use "min" or "mean"')

    def wants(self, model: ModelInfo) -> Statistics:
        """Token ids, the newest queries, and column sums over all queries and generated ones."""
        return Statistics(queries=self.profile, column_sums=True, decode=True, tokens=True)

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """Choose every head's candidate (Eq. 2) and evict by it."""
        if stats.queries is not None:
            stats.notes[RUNG] = tuple(self._choose(kv, head, stats, stats.queries) for head in range(kv.kv_heads))
        return self._evict(Edits(), kv, stats)

    def after_decode(self, layers: list[LayerView], stats: list[Stats]) -> Edits | None:
        """Let go of what left the local span, and rank heavy hitters anew (algorithm 2)."""
        edits = Edits()
        for view, own in zip(layers, stats, strict=True):
            self._evict(edits, view, own)
        return edits

    def _choose(self, kv: LayerView, head: int, stats: Stats, queries: Floats) -> int:
        """The first candidate that recovers `recovery` of the profiled attention; the full one where a query has none,
        for an earlier policy left nothing before it.
        """
        length = kv.info.length
        rows = min(len(queries), self.profile, length // 2)
        columns = self._columns(kv, head, stats)
        if not rows or not (columns.positions <= length - rows).any():
            return FULL
        group = kv.info.widths.group
        newest = queries[len(queries) - rows :, head * group : (head + 1) * group]
        keys, bias = kv.keys(head), kv.bias(head)
        total = np.zeros((len(columns.lasting) + 1, group), np.float32)
        for start in range(0, rows, BLOCK):
            part = newest[start : start + BLOCK]
            places = np.arange(start, start + len(part)) + length - rows
            seen = causal_map(kv.info.model, part, places, keys, columns.positions, bias)
            total += columns.recovered(seen, places)
        recovered = total / rows
        reduced = recovered.min(axis=1) if self.group == "min" else recovered.mean(axis=1)
        enough = np.flatnonzero(reduced >= self.recovery)
        return int(enough[0]) if len(enough) else FULL

    def _evict(self, edits: Edits, kv: LayerView, stats: Stats) -> Edits:
        candidates = stats.notes.get(RUNG, (FULL,) * kv.kv_heads)
        if all(candidate == FULL for candidate in candidates):
            return edits
        kept = []
        for head, candidate in enumerate(candidates):
            mask = self._columns(kv, head, stats).kept(candidate, kv.info.length)
            kept.append(np.flatnonzero(mask))
        if all(len(slots) == kv.count(head) for head, slots in enumerate(kept)):
            return edits
        return edits.keep(kept, layer=kv.layer)

    def _columns(self, kv: LayerView, head: int, stats: Stats) -> Columns:
        """What the candidates keep at present (§4.1), heavy hitters by attention summed over queries and the group."""
        assert stats.tokens is not None and stats.column_sums is not None, "the policy asked for them"
        special, punctuation = kv.info.model.classes().masks(stats.tokens[head])
        marked = special | punctuation
        heavy = marked.copy()
        heavy[best(stats.column_sums[head].sum(axis=0), int(self.frequent * kv.info.length))] = True
        span = int(self.local * kv.info.prompt)
        return Columns(np.stack((special, marked, heavy)), kv.positions(head), span)


def causal_map(
    model: ModelInfo, queries: Floats, places: Integers, keys: Floats, positions: Integers, bias: Floats
) -> Floats:
    """Causal attention probabilities [heads, queries, slots] fp32 of queries [queries, heads, head_dim] at `places`
    over keys [slots, head_dim] at rising `positions` with logit biases [slots].
    """
    heads = queries.shape[1]
    sees = np.tile(np.searchsorted(positions, places, side="right"), heads)
    rows = np.moveaxis(queries, 1, 0).reshape(-1, queries.shape[2])
    probabilities = attention_map(rows, keys, sees, scale=model.scale, softcap=model.softcap, bias=bias)
    return probabilities.reshape(heads, len(queries), len(keys))
