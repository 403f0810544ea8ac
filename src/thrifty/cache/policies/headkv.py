"""HeadKV: heads that retrieve get the slots; which heads those are is measured once a model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Floats
from thrifty.cache.head_scores import check_scores, reduced
from thrifty.cache.layer_budgets import check_beta, whole
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policies.snapkv import Snapkv
from thrifty.cache.traits import Traits
from thrifty.card import Card
from thrifty.registry import technique

Doubles = npt.NDArray[np.float64]

LIMITS = (
    "needs the scores of `thrifty heads MODEL`, which are of the checkpoint: techniques on weights do not change them",
    (
        "the probe is Thrifty's own: 16 questions of 256 and 480 tokens, in sentences and prose that no task uses (the "
        "official ones have up to 50 thousand tokens); a model that answers fewer than a quarter has no scores"
    ),
    "scores of a KV head's query heads are reduced by `reduce` (the paper stores every query head, and so more bytes)",
    "budgets add up to the slot (the official code rounds b/β down, and every head by itself)",
    "what exceeds the prompt goes to the other heads by their scores (the official code loses it)",
    "ranks global layers only: a sliding-window layer holds its window",
    "the share is of all tokens so far, evicted ones of earlier prompts included",
    "one `beta` for all budgets: the paper reports the best of eight for each",
)
CARD = Card(
    title=(
        "Not All Heads Matter: A Head-Level KV Cache Compression Method with Integrated Retrieval and Reasoning "
        "(HeadKV-R)"
    ),
    paper="arXiv:2410.19258",
    year=2024,
    mechanism=(
        "Shares one pool of slots out among all heads of the model by how often each looks up a needle that the model "
        "then says; inside a head the best-scored slots and the newest stay, as in SnapKV."
    ),
    claim="six LongBench sets, Llama-3-8B, 64 slots a head: ahead of SnapKV, PyramidKV and Ada-KV at the same budget",
    limits=LIMITS,
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Headkv(Snapkv):
    """keep, capacity: the mean over heads and layers, window included. beta: 1/β of it is the pool that scores share
    out, the rest is every head's own (§3.2; near 1: all by score). reduce: from query heads to KV heads.
    """

    window: int = 8
    beta: float = 1.2
    reduce: Literal["mean", "max"] = "mean"

    traits = Traits(exact=True, ragged=True)
    kind: ClassVar[str] = "r"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.name, self.beta)

    def check(self, model: ModelInfo) -> None:
        """The model must have scores of this kind, one a query head of every global layer."""
        check_scores(self.name, model, self.kind)

    def budgets(self, layer: LayerInfo, counts: list[int], newest: int) -> list[int]:
        """The layer's row of the model's budgets."""
        shares = importance(layer.model.head_scores[self.kind], layer.model, self.reduce)
        table = head_budgets(shares, self.budget(layer.length, newest), layer.length - newest, self.beta)
        return table[layer.model.policy_layers.index(layer.index)]

    def kept_in_layer(self, prompt: int, generated: int = 0) -> int:
        """Scores may give one layer everything it has."""
        return prompt + generated


def importance(scores: Floats, model: ModelInfo, how: str) -> list[Doubles]:
    """S by global layer, fp64 [KV heads], with ΣS = 1 over all, from scores of query heads [global layers, heads]."""
    groups = reduced(scores, model, how)
    total = np.concatenate(groups).sum()
    return [own / total for own in groups]


def head_budgets(shares: Sequence[Doubles], mean: int, most: int, beta: float) -> list[list[int]]:
    """Whole budgets [layers][heads] beside the window: (b − b/β) + S_h·B with b = mean, B = (b/β)·H (eq. 3, 4; H: heads
    of all layers).

    They add up to H·mean. most: what a head has; what would exceed it is shared out among the others by S, evenly
    where these have none.
    """
    if mean >= most:
        return [[most] * len(own) for own in shares]
    scores = np.concatenate(list(shares))
    wanted = mean - mean / beta + scores * (mean / beta * len(scores))
    while (over := wanted > most).any():
        excess = (wanted[over] - most).sum()
        wanted[over] = most
        open_scores = np.where(wanted < most, scores, 0.0)
        if not open_scores.any():
            open_scores = (wanted < most).astype(np.float64)
        wanted += excess * open_scores / open_scores.sum()
    flat = _at_most(whole(wanted.tolist()), most)
    ends = list(itertools.accumulate(len(own) for own in shares))
    return [flat[end - len(own) : end] for own, end in zip(shares, ends, strict=True)]


def _at_most(budgets: list[int], most: int) -> list[int]:
    """The same in sum: where rounding gave a head one slot more than it has, the first head with room takes it."""
    for head, budget in enumerate(budgets):
        if budget > most:
            budgets[head] -= 1
            budgets[next(other for other, own in enumerate(budgets) if own < most)] += 1
    return budgets
