"""HQQ: half-quadratic quantization, which fits the zero points of groups to the weights alone, without calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from thrifty.arrays import Array, Floats
from thrifty.card import Card
from thrifty.formats.linear import GroupLinear, PackedLinear
from thrifty.formats.packed import TILE
from thrifty.kernels.reference.affine import require_finite
from thrifty.registry import technique
from thrifty.weights.grid import Grid, Steps
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import Activations, WeightTechnique

FINEST = 2e4  # codes a unit of weight, the most: the inverse scale is cut there


@dataclass(frozen=True)
class Solver:
    """The half-quadratic solver's constants. norm: p of the sparse norm of the errors, below 1. beta: weight of the
    quadratic term; kappa: what multiplies it after every iteration. iterations: the most.
    """

    norm: float = 0.7
    beta: float = 10.0
    kappa: float = 1.0
    iterations: int = 20


@technique(
    stage="weights",
    card=Card(
        title="Half-Quadratic Quantization of Large Machine Learning Models (HQQ)",
        paper="Badri and Shaji, mobiusml.github.io/hqq_blog",
        year=2023,
        mechanism="Splits the errors of rounding into sparse outliers and a rest by half-quadratic optimisation, and "
        "moves each group's real-valued zero point so that the rest is centred; no calibration.",
        claim="Llama-2-7B, WikiText2 perplexity at 4 bits in groups of 64: 5.30, against 5.28 of AWQ and 5.38 of GPTQ, "
        "which calibrate (5.18 in FP16)",
        limits=(
            "the zero point is stored times the scale, as a group's float16 minimum; codes are the nearest to that",
            "as in the authors' solver, zero points are those of the last iteration, not of the best",
            "groups are consecutive columns of a row (the authors' axis = 1), a short last group is one of its own",
            "scales and zero points are not rounded once more (the authors' quant_zero and quant_scale)",
            "kappa is 1 by default: the article lets beta grow by it, the authors' present solver does not",
            "groups narrower than 1e-4 keep steps of 5e-5; the authors' code gives them one value",
            "embedding, logits and routers stay as they are",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class Hqq(WeightTechnique):
    """bits and group of the stored codes.

    norm: p of the sparse norm of the errors. beta, kappa: the quadratic term's weight, and its growth in an iteration.
    iterations: the most.
    """

    bits: Literal[2, 3, 4, 8] = 4
    group: Literal[32, 64, 128] = 64
    norm: Annotated[float, Field(gt=0, le=1)] = 0.7
    beta: Annotated[float, Field(gt=0)] = 10.0
    kappa: Annotated[float, Field(ge=1)] = 1.0
    iterations: Annotated[int, Field(ge=1, le=1000)] = 20

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        weight = linear.linear.dequantize()
        require_finite(weight, f"'{linear.name}'")
        solver = Solver(self.norm, self.beta, self.kappa, self.iterations)
        return half_quadratic(weight, Grid(self.bits, self.group), solver, linear.linear.bias)


def half_quadratic(
    weight: Floats,
    grid: Grid,
    solver: Solver = Solver(),
    bias: Array | None = None,
) -> GroupLinear:
    """Weights fp32 [rows, columns] rounded on grids whose zero points the solver chose: w = scale · (code − zero).

    Raises KernelError where a scale or zero point is beyond float16.
    """
    inverse, zero = solve(weight, grid, solver)
    # An unsigned code is −low above the one that is stored.
    steps = grid.steps(np.float32(1) / inverse, (-np.float32(grid.low) - zero) / inverse)
    codes = np.empty(weight.shape, np.int16)
    for start in range(0, len(weight), TILE):
        part = slice(start, start + TILE)
        own = Steps(steps.scale[part], steps.base[part], steps.low, steps.high)
        nearest = own.codes(grid.split(weight[part]))
        codes[part] = nearest.reshape(len(nearest), -1)[:, : weight.shape[1]]
    return grid.stored(codes, steps, bias)


def solve(weight: Floats, grid: Grid, solver: Solver) -> tuple[Floats, Floats]:
    """Inverse scales and zero points, fp32 [rows, groups]: min over z of ‖W − (Q − z)/s‖_p^p with s fixed.

    With the errors' sparse part E as a variable of its own, each iteration takes E = shrink(W − W_r) and then
    z = mean over the group of Q − (W − E)·s. It ends when the mean |W − W_r| of the whole matrix stops falling.
    """
    parts = list(_parts(weight, grid))
    least, beta = float("inf"), solver.beta
    for _ in range(solver.iterations):
        error = sum(part.step(beta, solver.norm) for part in parts) / weight.size
        beta *= solver.kappa
        if error >= least:
            break
        least = error
    inverse = np.empty((len(weight), grid.groups(weight.shape[1])), np.float32)
    zero = np.empty_like(inverse)
    for part in parts:
        inverse[part.place], zero[part.place] = part.inverse[..., 0], part.zero[..., 0]
    return inverse, zero


def shrink(errors: Floats, beta: float, norm: float) -> Floats:
    """The generalised soft threshold sign(x)·max(|x| − |x|^(p−1)/β, 0): the errors that count as outliers."""
    magnitude = np.abs(errors)
    with np.errstate(divide="ignore"):
        threshold = np.power(magnitude, np.float32(norm - 1)) / np.float32(beta)
    kept: Floats = np.sign(errors) * np.maximum(magnitude - threshold, 0)
    return kept


class _Part:
    """Groups of equal size, fp32 [rows, groups, n]. place: of them in the matrix of all groups [rows, groups]."""

    def __init__(self, values: Floats, place: tuple[slice, slice], highest: int) -> None:
        self.values, self.place, self.highest = values, place, highest
        least, greatest = values.min(axis=-1, keepdims=True), values.max(axis=-1, keepdims=True)
        with np.errstate(divide="ignore"):
            self.inverse: Floats = np.minimum(np.float32(highest) / (greatest - least), np.float32(FINEST))
        self.zero: Floats = -least * self.inverse
        if highest == 15:
            self.zero = np.rint(self.zero)  # of 4 bits alone

    def step(self, beta: float, norm: float) -> float:
        """One iteration; the summed |W − W_r| before it."""
        codes = np.clip(np.rint(self.values * self.inverse + self.zero), 0, self.highest)
        errors = self.values - (codes - self.zero) / self.inverse
        outliers = shrink(errors, beta, norm)
        self.zero = np.mean(codes - (self.values - outliers) * self.inverse, axis=-1, keepdims=True)
        return float(np.abs(errors).sum(dtype=np.float64))


def _parts(weight: Floats, grid: Grid) -> list[_Part]:
    """The whole groups of some rows at a time, and the short last ones."""
    columns = weight.shape[1]
    whole = columns // grid.group
    highest = grid.high - grid.low
    parts = []
    for start in range(0, len(weight), TILE):
        rows = slice(start, min(start + TILE, len(weight)))
        values = weight[rows]
        if whole:
            full = values[:, : whole * grid.group].reshape(len(values), whole, grid.group)
            parts.append(_Part(full, (rows, slice(0, whole)), highest))
        if columns % grid.group:
            parts.append(_Part(values[:, None, whole * grid.group :], (rows, slice(whole, whole + 1)), highest))
    return parts
