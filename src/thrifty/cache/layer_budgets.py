"""Budgets of slots shared out over layers: whole numbers that add up, and PyramidKV's arithmetic sequence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from thrifty.errors import RecipeError

if TYPE_CHECKING:
    from thrifty.cache.model_info import LayerInfo


def pyramid(layers: int, mean: int, most: int, beta: float) -> list[int]:
    """Budgets of `layers` layers from the bottom: k_l = k_0 − l·(k_0 − k_top)/(layers − 1), k_top = mean/β,
    k_0 = 2·mean − mean/β (arXiv:2406.02069, §4.2). Whole slots that add up to layers·mean.

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


def pyramid_budget(layer: LayerInfo, mean: int, window: int, beta: float) -> int:
    """One layer's budget beside its window, ranked among the layers that policies act on."""
    layers = layer.model.policy_layers
    return pyramid(len(layers), mean, layer.length - window, beta)[layers.index(layer.index)]


def bottom_layer(prompt: int, mean: int, window: int, beta: float) -> int:
    """Upper bound of the slots of the layer that keeps most of a prompt."""
    return min(prompt, window + math.ceil(2 * mean - mean / beta))


def check_beta(name: str, beta: float) -> None:
    """Raise RecipeError for a β that is no divisor of a budget."""
    if not 1 <= beta < math.inf:
        raise RecipeError(f"{name}: beta = {beta}; use 1 (every layer the same) or more")


def whole(shares: Sequence[float]) -> list[int]:
    """Whole numbers, each within one of its share, whose sum is the shares' sum: differences of rounded sums."""
    edges, total = [0], 0.0
    for share in shares:
        total += share
        edges.append(math.floor(total + 0.5))
    return [after - before for before, after in itertools.pairwise(edges)]
