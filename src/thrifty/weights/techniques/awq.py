"""AWQ: columns that read large inputs are scaled up before they are rounded, so that they lose less."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from thrifty.arrays import Floats
from thrifty.card import Card
from thrifty.formats.linear import GroupLinear, PackedLinear
from thrifty.formats.packed import TILE
from thrifty.kernels.reference.affine import require_finite
from thrifty.registry import technique
from thrifty.weights.grid import Grid
from thrifty.weights.groups import LinearGroup
from thrifty.weights.hessian import SLICE, OutputError, finite_inputs, inputs_of
from thrifty.weights.scaled_rounding import ScaledRounding
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import KEPT, Activations, WeightTechnique

STRENGTHS = tuple(step / 20 for step in range(20))  # alpha of eq. 5
SHRINKING = tuple(1 - step / 20 for step in range(10))  # of a group's largest weight, where it is cut
LEAST = 1e-4  # of a factor, before they are centred
UNCUT = ("query", "key")  # their product decides, which the error of either alone does not tell


@technique(
    stage="weights",
    card=Card(
        title="AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
        paper="arXiv 2306.00978",
        year=2023,
        mechanism="Multiplies the columns of linears by a power of the mean size of what they read and divides what "
        "writes it, the power searched with the rounding in the loop; then cuts each group where that costs least.",
        claim="Llama-2-7B, WikiText2 perplexity at 4 bits in groups of 128: 5.60 against 5.73 of round-to-nearest "
        "(5.47 in FP16); at 3 bits 6.24 against 6.66",
        limits=(
            "the power is searched for the error of the readers' own outputs (eq. 4), not of the module around them",
            "each layer reads what the stored layers before it give; the authors' code calibrates in full precision",
            "a group is cut by its error on all calibration tokens; the authors' code takes 512 of them",
            "the calibration text has 4,096 tokens by default; the paper's has 128 × 512",
            "values are scaled only where one query head reads each value head, as in the authors' code",
            "experts are searched with the inputs of all tokens, their down projections with their own",
            "an expert that no token of the calibration text reached is rounded to the nearest, with a warning",
            "a group's minimum is stored as float16, not as an integer zero point",
            "a search does not predict the bytes of a recipe with awq: it changes more than one linear at a time",
            "embedding and logits stay as they are; routers are scaled, not rounded",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class Awq(ScaledRounding):
    """bits and group of the stored codes. clip: whether groups are cut, those of queries and keys apart."""

    needs_calibration: ClassVar[bool] = True

    bits: Literal[2, 3, 4, 8] = 4
    group: Literal[32, 64, 128] = 32
    clip: bool = True

    def factors(self, group: LinearGroup, calibration: Activations | None) -> Floats | None:
        inputs = finite_inputs(group.readers[0], calibration)
        if len(group.channels) != group.width or not len(inputs):
            return None
        rounded = (reader for reader in group.readers if reader.role not in KEPT)
        return search((_weight(reader) for reader in rounded), inputs, Grid(self.bits, self.group))

    def storage(self) -> WeightTechnique:
        return CutRounding(bits=self.bits, group=self.group, clip=self.clip)


@dataclass(frozen=True, kw_only=True)
class CutRounding(WeightTechnique):
    """Round-to-nearest of groups that are cut where the error in their part of the outputs is least."""

    needs_calibration: ClassVar[bool] = True
    bytes_need_calibration: ClassVar[bool] = False
    name: ClassVar[str] = "awq"

    bits: Literal[2, 3, 4, 8]
    group: Literal[32, 64, 128]
    clip: bool

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        weight, inputs = _weight(linear), inputs_of(linear, calibration)
        if self.clip and linear.role not in UNCUT and len(inputs):
            weight = cut(weight, inputs, Grid(self.bits, self.group))
        return GroupLinear.quantize(weight, self.bits, self.group, bias=linear.linear.bias)


def search(weights: Iterable[Floats], inputs: Floats, grid: Grid) -> Floats | None:
    """The factors s = s_X^α, fp32 [columns], of the α with the least error (§3.2, eq. 4 and 5); None for α = 0:

        s* = argmin over s of ‖Q(W·diag(s))·(diag(s)⁻¹·X) − W·X‖²

    weights: W of each reader, [rows, columns]. inputs: X, fp32 [tokens, columns].
    """
    sizes = np.abs(inputs).mean(axis=0)
    candidates = [factors_of(sizes, strength) for strength in STRENGTHS]
    error_of, errors = OutputError(inputs), np.zeros(len(candidates))
    for weight in weights:
        for place, factors in enumerate(candidates):
            errors[place] += error_of(grid.rounded(weight * factors) / factors - weight)
    best = int(errors.argmin())
    return candidates[best] if best else None


def factors_of(sizes: Floats, strength: float) -> Floats:
    """s_X^α, fp32 [columns], divided by the root of its greatest times its least."""
    factors = np.maximum(np.power(sizes, np.float32(strength)), np.float32(LEAST))
    return factors / np.sqrt(factors.max() * factors.min())


def cut(weight: Floats, inputs: Floats, grid: Grid) -> Floats:
    """The weight [rows, columns] with each group cut at the share of its largest number, 1 to 0.55, that gives the
    group's part of the outputs the least squared error once rounded. inputs: fp32 [tokens, columns].
    """
    moments, result = _group_moments(inputs, grid), np.empty_like(weight)
    for start in range(0, len(weight), TILE):
        groups = grid.split(weight[start : start + TILE])
        largest = np.abs(groups).max(axis=-1, keepdims=True)
        bounds, least = largest.copy(), np.full(largest.shape[:2], np.inf, np.float32)
        for share in SHRINKING:
            bound = largest * np.float32(share)
            difference = grid.nearest(np.clip(groups, -bound, bound)) - groups
            turned = np.ascontiguousarray(difference.transpose(1, 0, 2))  # [groups, rows, n]
            error = np.einsum("grn,grn->rg", turned @ moments, turned)
            better = error < least
            least[better], bounds[better] = error[better], bound[better]
        whole = np.clip(groups, -bounds, bounds).reshape(len(groups), -1)
        result[start : start + TILE] = whole[:, : weight.shape[1]]
    return result


def _group_moments(inputs: Floats, grid: Grid) -> Floats:
    """XᵀX of the columns of each group, fp32 [groups, group, group]; 0 where a short last group has no column."""
    columns = inputs.shape[1]
    count = grid.groups(columns)
    total = np.zeros((count, grid.group, grid.group))
    for start in range(0, len(inputs), SLICE):
        part = inputs[start : start + SLICE]
        padded = np.pad(part, ((0, 0), (0, count * grid.group - columns)))
        split = padded.reshape(len(part), count, grid.group).transpose(1, 2, 0)
        total += split @ split.transpose(0, 2, 1)
    return total.astype(np.float32)


def _weight(linear: LinearInfo) -> Floats:
    weight = linear.linear.dequantize()
    require_finite(weight, f"'{linear.name}'")
    return weight
