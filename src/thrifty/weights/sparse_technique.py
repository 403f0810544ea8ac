"""Techniques that keep two weights of every four: the mechanics of 2:4 sparsity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from thrifty.arrays import Flags, Floats
from thrifty.errors import KernelError, RecipeError
from thrifty.formats.linear import PackedLinear, Sparse24Linear
from thrifty.formats.sparse_2_4 import Values
from thrifty.kernels.reference.sparse_2_4 import GROUP
from thrifty.models.model import Model
from thrifty.weights.structure import LinearInfo, linears
from thrifty.weights.technique import Activations, WeightTechnique


@dataclass(frozen=True, kw_only=True)
class SparseTechnique(WeightTechnique):
    """One method of choosing two weights of every four. A technique writes `prune`.

    values: how the kept weights are stored: "bf16", or "int8" or "int4" with a scale for `group` columns.
    """

    bytes_need_calibration: ClassVar[bool] = False

    values: Values = "bf16"
    group: Literal[32, 64, 128] = 32

    @abstractmethod
    def prune(self, linear: LinearInfo, calibration: Activations | None) -> tuple[Floats, Flags]:
        """The weights fp32 [out, in], which may have moved to make up for what is left out, and the mask bool [out, in]
        of those that are kept. Raises RecipeError for weights that are no finite numbers (`finite`).
        """

    def check(self, model: Model) -> None:
        """Raise RecipeError as every technique that acts on places, and for a layer whose columns are not fours."""
        super().check(model)
        for linear in linears(model):
            if self.selects(linear):
                self._check_width(linear)

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        """See WeightTechnique. Raises RecipeError for weights that are no finite numbers, and as `check`."""
        self._check_width(linear)
        pruned, mask = self.prune(linear, calibration)
        try:
            return Sparse24Linear.from_weight(pruned, mask, self.values, self.group, linear.linear.bias)
        except KernelError as error:
            raise RecipeError(f"technique '{self.name}': '{linear.name}': {error}") from error

    def _check_width(self, linear: LinearInfo) -> None:
        if linear.linear.in_features % GROUP:
            raise RecipeError(
                f"technique '{self.name}': '{linear.name}' has {linear.linear.in_features} columns, which are not "
                f'whole groups of {GROUP}: leave it out with skip = ["{linear.name}"]'
            )


@dataclass(frozen=True, kw_only=True)
class Stored(SparseTechnique):
    """Stores weights under masks that were found before, by the names of the linears; it is no technique of its own."""

    name: ClassVar[str] = "stored-masks"
    masks: Mapping[str, Flags]

    def selects(self, linear: LinearInfo) -> bool:
        return linear.name in self.masks

    def prune(self, linear: LinearInfo, calibration: Activations | None) -> tuple[Floats, Flags]:
        return finite(linear), self.masks[linear.name]


def finite(linear: LinearInfo) -> Floats:
    """The weights fp32 [out, in]. Raises RecipeError naming the layer where some are NaN or infinite."""
    weight = linear.linear.dequantize()
    count = int((~np.isfinite(weight)).sum())
    if count:
        raise RecipeError(
            f"'{linear.name}' has {count} NaN or infinite weights of {weight.size}: the checkpoint is damaged, or skip "
            "this layer"
        )
    return weight
