"""The generalised Gaussian distribution of weights: its shape by moments, weights drawn from it, and DeepShape.

Density ∝ exp(−(|x − μ| / β)^γ): γ = 2 is the Gaussian, 1 the Laplacian, less is sharper with longer tails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Floats

SHAPES = np.arange(0.1, 3.005, 0.01)  # γ that moments are matched with (arXiv 2506.00486, released code)
STEP = 2.0**-13  # of DeepShape's grid
SHARPER, NARROWER = 0.8, 0.6  # γ′/γ and β′/β of DeepShape
NEAR = 8  # levels up to an eighth above one are counted with it
GAIN = {"linear": 1.0, "sigmoid": 1.0, "relu": 2.0}
Activation = Literal["linear", "sigmoid", "relu"]


@dataclass(frozen=True)
class Distribution:
    """mean μ, scale β and shape γ."""

    mean: float
    scale: float
    shape: float


def ratio(shape: float) -> float:
    """E[x²] / E[|x|]² = Γ(1/γ)·Γ(3/γ) / Γ(2/γ)², which falls with γ."""
    return math.exp(math.lgamma(1 / shape) + math.lgamma(3 / shape) - 2 * math.lgamma(2 / shape))


def deviation(shape: float) -> float:
    """The standard deviation where β is 1: √(Γ(3/γ) / Γ(1/γ))."""
    return math.exp((math.lgamma(3 / shape) - math.lgamma(1 / shape)) / 2)


def fitted(weight: Floats) -> Distribution:
    """The distribution of weights by moments: ρ = n·Σw² / (Σ|w|)² matched with the nearest of `SHAPES`. Weights that
    are all alike have no shape: γ = 2 and β = 0.
    """
    values = weight.astype(np.float64).reshape(-1)
    mean = float(values.mean())
    absolute, spread = float(np.abs(values).mean()), float(values.std())
    if not absolute or not spread:
        return Distribution(mean, 0.0, 2.0)
    found = float(np.square(values).mean()) / absolute**2
    ratios = np.array([ratio(shape) for shape in SHAPES])
    shape = float(SHAPES[np.abs(ratios - found).argmin()])
    return Distribution(mean, spread / deviation(shape), shape)


def first_weights(rows: int, columns: int, shape: float, seed: int = 0, activation: Activation = "linear") -> Floats:
    """Weights fp32 [rows, columns] to begin a training with: GG(γ) of variance ξ / columns (GG initialisation).

    |x| = β·g^(1/γ), with g of a Gamma distribution of 1/γ, has the density above.
    """
    chance = np.random.default_rng(seed)
    scale = math.sqrt(GAIN[activation] / columns) / deviation(shape)
    sizes = scale * chance.gamma(1 / shape, size=(rows, columns)) ** (1 / shape)
    signs = chance.integers(0, 2, (rows, columns)) * 2 - 1
    drawn: Floats = (signs * sizes).astype(np.float32)
    return drawn


def levels_of(weight: Floats, step: float = STEP) -> npt.NDArray[np.int64]:
    """Whole multiples of `step` nearest to the weights."""
    levels: npt.NDArray[np.int64] = np.rint(weight.astype(np.float64) / step).astype(np.int64)
    return levels


def deep_shape(weight: Floats, tail: int) -> Floats:
    """Weights of a sharper distribution in the order of the old ones (DeepShape): γ′ = 0.8·γ, β′ = 0.6·β.

    All go to the grid of 2⁻¹³. Levels from the cut on, and as far on the other side, stay as they are. The cut is the
    first positive level of which `tail` weights or fewer have it; of it and those up to an eighth above it on average,
    for weights of few digits, such as bf16, leave every second level or more empty. The rest is sorted and gets the
    levels of a histogram ∝ exp(−(|x − μ| / β′)^γ′); its counts are rounded down, so that some of the outermost keep
    their level.
    """
    levels = levels_of(weight)
    flat = levels.reshape(-1)
    prior = fitted((levels * STEP).astype(np.float32))
    if not prior.scale:
        return (levels * STEP).astype(np.float32)
    cut = _cut(flat, tail)
    inside = np.flatnonzero(np.abs(flat) < cut)
    grid = np.arange(-cut + 1, cut)
    density = np.exp(-((np.abs(grid * STEP - prior.mean) / (NARROWER * prior.scale)) ** (SHARPER * prior.shape)))
    counts = np.floor(len(inside) * density / density.sum()).astype(np.int64)
    order = inside[np.argsort(flat[inside], kind="stable")]
    spare = (len(order) - int(counts.sum())) // 2  # at either end
    shaped = flat.copy()
    shaped[order[spare : spare + int(counts.sum())]] = np.repeat(grid, counts)
    return (shaped.reshape(levels.shape) * STEP).astype(np.float32)


def _cut(levels: npt.NDArray[np.int64], tail: int) -> int:
    """The first positive level from which few weights are left, at least 1; see `deep_shape`."""
    counts = np.bincount(levels[levels > 0], minlength=2)
    sums = np.concatenate([[0], np.cumsum(counts)])
    first = np.arange(1, len(counts))
    behind = np.minimum(first + first // NEAR + 1, len(counts))
    few = np.flatnonzero((sums[behind] - sums[first]) / (behind - first) <= tail)
    return int(few[0]) + 1 if few.size else len(counts)
