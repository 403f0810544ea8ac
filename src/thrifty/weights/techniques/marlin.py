"""MARLIN: 4-bit weights whose product is as fast per byte at 16 rows as at one, and the GPTQ that makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from thrifty.arrays import Floats
from thrifty.card import Card
from thrifty.errors import KernelError
from thrifty.formats.linear import GroupLinear, PackedLinear, ZeroPointLinear
from thrifty.kernels.reference import marlin, packing
from thrifty.kernels.reference.affine import Halves, require_finite
from thrifty.kernels.reference.marlin import GROUP, ZERO, Words
from thrifty.registry import technique
from thrifty.weights.grid import Grid, Steps
from thrifty.weights.hessian import hessian, inputs_of, inverse_factor
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import Activations, WeightTechnique
from thrifty.weights.techniques.gptq import sweep
from thrifty.weights.techniques.rtn import RoundToNearest

GRID = Grid(4, GROUP, symmetric=True)


@technique(
    stage="weights",
    card=Card(
        title="MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models",
        paper="arXiv 2408.11743",
        year=2024,
        mechanism="Symmetric 4-bit weights in groups of 128 lie in the order a blocked product reads them, so that one "
        "pass over their bytes serves all rows of a batch; GPTQ with clipped group scales makes them.",
        claim="A10: 3.87 times as fast as FP16 weights up to batches of 16 to 32 (of 3.88 that the bytes allow)",
        limits=(
            (
                "on the CPU the layout is Thrifty's own int4 (tiles of 16 × 32), which has MARLIN's ideas: "
                "bytes in reading order, nibbles split in registers, memory passed over once for up to 64 rows. What "
                "is stored here is as fast as the same from `gptq` with bits 4, group 128, symmetric"
            ),
            "the CPU multiplies 8-bit activations (a scale every 32 columns) in int32; the paper FP16 in FP32",
            "from four rows on the CPU splits the nibbles anew for every four rows, from cache; MARLIN once for 64",
            "a core does fewer operations a byte than an A10: from about four rows on arithmetic bounds a product",
            (
                "MARLIN's own order of bits is in `kernels/reference/marlin.py`, for `kernels/triton/marlin.py`; that "
                "kernel has run in Triton's interpreter only: its speed on a GPU is unmeasured, and no engine calls it"
            ),
            "the Triton kernel applies scales to a group's FP32 sum; no striped partition, no FP16 reduction",
            "groups of 128 only; the authors' also take one scale a row",
            "any width works on the CPU; MARLIN's order needs multiples of 256 rows and 128 columns",
            "biases are kept; the authors' layers have none",
            "damping (0.1) and clipping are the authors', their 256 sequences of varied lengths are not",
            "a group without negative weights has a scale for its largest; the authors' search starts at half of that",
            "an expert that no token of the calibration text reached gets the scales that clipping finds without it",
            "a layer that holds such codes already keeps them; one of other grids is rounded anew",
            "Sparse-MARLIN (2:4) is not here; embedding, logits and routers stay as they are",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class Marlin(WeightTechnique):
    """damping: of the mean second moment of the inputs, what is added to each. shrink: the greatest share by which a
    group's scale is made smaller than its largest weight asks for, tried in hundredths; 0 clips nothing.
    """

    needs_calibration: ClassVar[bool] = True
    bytes_need_calibration: ClassVar[bool] = False

    damping: Annotated[float, Field(gt=0, le=1)] = 0.1
    shrink: Annotated[float, Field(ge=0, le=0.95)] = 0.75

    def by_rows(self) -> RoundToNearest:
        """Its codes and scales, chosen otherwise."""
        return RoundToNearest(bits=4, group=128, symmetric=True)

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        held = carried(linear.linear)
        if held is not None:
            return held
        weight = linear.linear.dequantize()
        require_finite(weight, f"'{linear.name}'")
        factor = inverse_factor(hessian(inputs_of(linear, calibration)), self.damping, linear.name)
        codes, steps = sweep(weight, factor, GRID, fit=lambda group, own: clipped(group, own, self.shrink))
        return GRID.stored(codes, steps, linear.linear.bias)


def clipped(group: Floats, factor: Floats, shrink: float) -> Steps:
    """The grid of a group [rows, n] with the least error of GPTQ's own measure ‖(ŵ − w)·U⁻¹‖² (authors' `Quantizer`).

    factor: the group's part of U, fp32 upper triangular [n, n]. Candidates are 2·p·max|w| / 15 with p = 1, 0.99, …,
    1 − shrink; of equals the largest.
    """
    inverse = np.linalg.inv(factor.astype(np.float64)).astype(np.float32)
    largest = np.abs(group).max(axis=1)
    best = GRID.steps(largest * np.float32(2 / 15))
    least = np.full(len(group), np.inf, np.float32)
    for tried in range(round(shrink * 100) + 1):
        steps = GRID.steps(largest * np.float32((1 - tried / 100) * 2 / 15))
        error = np.square((steps.values(steps.codes(group)) - group) @ inverse).sum(axis=1)
        better = error < least
        least[better], best.scale[better] = error[better], steps.scale[better]
    return best


def carried(linear: PackedLinear) -> GroupLinear | None:
    """The layer to the bit where its codes are MARLIN's already (4 bits, groups of 128, every zero point 8), as in
    checkpoints of GPTQ that are symmetric; None where it has to be rounded.
    """
    if isinstance(linear, GroupLinear):
        same = linear.bits == 4 and linear.group == GROUP and not linear.has_minimum and linear.codebook is None
        return linear if same else None
    if not isinstance(linear, ZeroPointLinear) or linear.bits != 4 or linear.group != GROUP:
        return None
    if (packing.unpack_parameters(linear.zeros)[: linear.out_features] != ZERO).any():
        return None
    sizes = (linear.out_features, linear.in_features, 4, GROUP)
    return GroupLinear(*sizes, linear.codes, linear.scales, bias=linear.bias)


def gpu_arrays(linear: GroupLinear) -> tuple[Words, Halves]:
    """Words int32 [in/16, 2·out] and scales fp16 [in/128, out] in MARLIN's order, without the bias: what its kernels on
    GPUs read. Raises KernelError for other codes than `marlin` makes, and for sizes that the order does not have.
    """
    if carried(linear) is not linear:
        raise KernelError(f"MARLIN's order takes symmetric int4-g128, not {linear.label}: compress with marlin first")
    rows, columns = linear.out_features, linear.in_features
    marlin.check_sizes(rows, columns)
    codes = packing.unpack_codes(linear.codes, 4)[:rows, :columns]
    scales = packing.unpack_parameters(linear.scales)[:rows]
    return marlin.pack(np.ascontiguousarray(codes), np.ascontiguousarray(scales))
