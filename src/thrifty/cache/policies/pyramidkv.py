"""PyramidKV: SnapKV's scores, with budgets that shrink from the bottom layer to the top one."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from thrifty.cache.model_info import LayerInfo
from thrifty.cache.policies.snapkv import Snapkv
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.registry import technique

CARD = Card(
    title="PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
    paper="arXiv:2406.02069",
    year=2024,
    mechanism=(
        "Gives lower layers, whose attention is spread out, more slots than upper ones, in an arithmetic sequence; "
        "inside a layer every head keeps its best-scored slots and the newest, as SnapKV does."
    ),
    claim="LongBench, Llama-3-8B, 64 slots a layer: 34.76 against SnapKV's 33.05 (full cache: 41.46)",
    limits=(
        "the mean over layers is the asked one to the slot (the official code's integer steps add up to 5 %)",
        "ranks global layers only: a sliding-window layer holds its window",
        "a budget above what a prompt has goes to the upper layers, also where the official code gives up the pyramid",
        "the share is of all tokens so far, evicted ones of earlier prompts included",
        "relies on the question standing at the end of the prompt; generated tokens are never evicted",
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Pyramidkv(Snapkv):
    """keep, capacity: the mean over layers, window included. beta: how many times less than the mean the top layer
    keeps beside its window (§4.2; 1: every layer the same). The window of 8 is the paper's.
    """

    window: int = 8
    beta: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.name, self.beta)

    def budgets(self, layer: LayerInfo, counts: list[int], window: int) -> list[int]:
        """The layer's place in the pyramid, the same for its heads."""
        return [pyramid_budget(layer, self.budget(layer.length, window), window, self.beta)] * len(counts)

    def kept_in_layer(self, prompt: int, generated: int = 0) -> int:
        """The bottom layer, and every generated token."""
        return bottom(prompt, self.budget(prompt, self.window), self.window, self.beta) + generated


def pyramid(layers: int, mean: int, most: int, beta: float) -> list[int]:
    """Budgets of `layers` layers from the bottom: k_l = k_0 − l·(k_0 − k_top)/(layers − 1), k_top = mean/β,
    k_0 = 2·mean − mean/β (§4.2). Whole slots that add up to layers·mean.

    most: what a layer has. Where k_0 exceeds it, k_0 = most and k_top = 2·mean − most; with mean ≥ most, all of it.
    """
    if mean >= most:
        return [most] * layers
    if layers == 1:
        return [mean]
    first, last = 2 * mean - mean / beta, mean / beta
    if first > most:
        first, last = most, 2 * mean - most
    step = (first - last) / (layers - 1)
    return whole([first - step * index for index in range(layers)])


def whole(wanted: list[float]) -> list[int]:
    """Whole numbers, each within one of the wanted, whose sum is the wanted sum: differences of rounded sums."""
    edges, total = [0], 0.0
    for one in wanted:
        total += one
        edges.append(math.floor(total + 0.5))
    return [after - before for before, after in itertools.pairwise(edges)]


def pyramid_budget(layer: LayerInfo, mean: int, window: int, beta: float) -> int:
    """One layer's budget beside its window, ranked among the global layers."""
    ranks = layer.model.policy_layers
    return pyramid(len(ranks), mean, layer.length - window, beta)[ranks.index(layer.index)]


def bottom(prompt: int, mean: int, window: int, beta: float) -> int:
    """Upper bound of the slots of the layer that keeps most of a prompt."""
    return min(prompt, window + math.ceil(2 * mean - mean / beta))


def check_beta(name: str, beta: float) -> None:
    """Raise RecipeError for a β that is no divisor of a budget."""
    if not 1 <= beta < math.inf:
        raise RecipeError(f"{name}: beta = {beta}; use 1 (every layer the same) or more")
