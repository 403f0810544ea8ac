"""Bipolar integers of any precision: weights and activations in bit planes, multiplied by counting bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from thrifty.card import Card
from thrifty.errors import KernelError, RecipeError
from thrifty.formats.bit_planes import MOST_COLUMNS, check_options
from thrifty.formats.linear import BitPlaneLinear, PackedLinear
from thrifty.models.model import Model
from thrifty.registry import technique
from thrifty.weights.structure import LinearInfo, linears
from thrifty.weights.technique import Activations, WeightTechnique


@technique(
    stage="weights",
    card=Card(
        title="Efficient Arbitrary Precision Acceleration for Large Language Models on GPU Tensor Cores (bipolar-INT)",
        paper="arXiv 2409.17870",
        year=2024,
        mechanism="Weights of n bits and activations of m bits are odd whole numbers whose bits stand for +2^i or "
        "−2^i; every pair of bit planes is multiplied by counting the bits in which they differ, and the n·m counts "
        "are added with their powers of two.",
        claim="matrix products 2.4 times as fast as CUTLASS's, inference of language models 6.7 times as fast, on an "
        "RTX 3090 (abstract)",
        limits=(
            "the paper's kernels are for GPU tensor cores; here AVX-512 with VPOPCNTDQ, AVX2 and plain C++",
            "the paper multiplies what others have rounded; here weights are rounded by alternating least squares",
            "weights and activations have one scale a row and group; the paper's have one a row",
            "products cost n·m passes: where a processor multiplies bytes (VNNI) they pay up to about n·m = 4",
            "no value is zero: a group of weights that are nearly all zero loses them",
            "layers of other widths take a table of the recipe each",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class AnyPrecision(WeightTechnique):
    """bits and activation_bits of the two sides of every product, 1 to 8; group: columns of a scale, a multiple of 32
    (no shorter than the rows: one scale a row, as in the paper).
    """

    bits: Annotated[int, Field(ge=1, le=8)] = 4
    activation_bits: Annotated[int, Field(ge=1, le=8)] = 8
    group: Annotated[int, Field(ge=32, le=MOST_COLUMNS, multiple_of=32)] = 64

    def check(self, model: Model) -> None:
        """See Technique; also where a row is too long for exact sums."""
        super().check(model)
        for linear in linears(model):
            if not self.selects(linear):
                continue
            try:
                check_options(linear.linear.in_features, self.bits, self.activation_bits, self.group)
            except KernelError as error:
                raise RecipeError(f"technique '{self.name}': '{linear.name}': {error}") from error

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        """§3.1: W = scale·x with x bipolar, without an offset."""
        return BitPlaneLinear.requantize(linear.linear, self.bits, self.activation_bits, self.group)
