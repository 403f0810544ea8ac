"""The bytes that a recipe's weight techniques will take, without compressing a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from thrifty.errors import KernelError, RecipeError
from thrifty.formats.linear import DenseLinear
from thrifty.weights.calibration import Activations
from thrifty.weights.scaled_rounding import ScaledRounding
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import Technique, WeightTechnique

TILE = 16  # rows; every packed format stores whole tiles of them
TOKENS = 128  # of random inputs


class Predictor:
    """Bytes and format of linears under `techniques`, the last of which that selects a linear decides.

    A technique is asked to compress the first tile and the first two tiles of a random linear as wide as the real one:
    what a format stores grows with the tiles of rows, beside what all rows share and `beyond_rows`. Nothing but the
    bytes is looked at, so where a technique needs calibration it is shown random inputs. A ScaledRounding moves factors
    into columns and norms, which keep their bytes, and is asked by its `storage`. Raises RecipeError where calibration
    decides the bytes, and for another technique that acts on more than one linear at a time: its bytes are known once
    it ran. `stored` raises it where a format does not take a linear's width.
    """

    def __init__(self, techniques: Sequence[Technique]) -> None:
        asked = [storing(technique) for technique in techniques]
        for technique in asked:
            if not isinstance(technique, WeightTechnique):
                raise RecipeError(
                    f"the bytes of technique '{technique.name}' are not known before it ran: it changes more than one "
                    "linear at a time. Leave it out of the recipe, or compress the model first."
                )
            if technique.needs_calibration and technique.bytes_need_calibration:
                raise RecipeError(
                    f"the bytes of technique '{technique.name}' are not known before it ran: it needs calibration. "
                    "Leave it out of the recipe, or compress the model first."
                )
            if technique.bytes_need_weights:
                raise RecipeError(
                    f"the bytes of technique '{technique.name}' are not known before it ran: they follow from the "
                    "values of the weights. Leave it out of the recipe, or compress the model first."
                )
        self.techniques = tuple(technique for technique in asked if isinstance(technique, WeightTechnique))
        self._known: dict[tuple[int, str, int, bool], tuple[int, int, str]] = {}
        self._samples: dict[tuple[int, int, bool], DenseLinear] = {}

    def stored(self, name: str, rows: int, columns: int, *, bias: bool = False) -> tuple[int, str] | None:
        """Bytes and format of the linear `name` [rows, columns]; None where no technique selects it."""
        for index, technique in reversed(list(enumerate(self.techniques))):
            info = LinearInfo(name, self._sample(TILE, columns, bias))
            if technique.selects(info):
                first, more, label = self._tiles(index, info, columns, bias)
                missing = 4 * (TILE * -(-rows // TILE) - rows) if bias else 0  # a bias is not padded
                beyond, suffix = technique.beyond_rows(rows, columns)
                return first + more * (-(-rows // TILE) - 1) - missing + beyond, label + suffix
        return None

    def _tiles(self, index: int, info: LinearInfo, columns: int, bias: bool) -> tuple[int, int, str]:
        """Bytes of the first tile of rows and of every further one, and the format."""
        key = (index, info.kind, columns, bias)
        if key not in self._known:
            technique = self.techniques[index].by_rows()
            both = (info, LinearInfo(info.name, self._sample(2 * TILE, columns, bias)))
            try:
                single, double = (technique.compress(sample, self._shown(technique, sample)) for sample in both)
            except KernelError as error:
                raise RecipeError(
                    f"technique '{technique.name}' cannot store '{info.name}' with {columns} columns: {error}"
                ) from error
            self._known[key] = (single.nbytes, double.nbytes - single.nbytes, single.label)
        return self._known[key]

    def _shown(self, technique: WeightTechnique, sample: LinearInfo) -> Activations | None:
        """Random inputs, and every weight as sensitive as the others; None for a technique without calibration."""
        if not technique.needs_calibration:
            return None
        linear = sample.linear
        inputs = self._sample(TOKENS, linear.in_features, False).weight
        return Activations(inputs, np.ones((linear.out_features, linear.in_features), np.float32))

    def _sample(self, rows: int, columns: int, bias: bool) -> DenseLinear:
        key = (rows, columns, bias)
        if key not in self._samples:
            weight = np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)
            self._samples[key] = DenseLinear.from_weight(weight, bias=np.zeros(rows, np.float32) if bias else None)
        return self._samples[key]


def storing(technique: Technique) -> Technique:
    """What decides the bytes of the linears that a technique stores."""
    if not isinstance(technique, ScaledRounding):
        return technique
    return replace(technique.storage(), layers=technique.layers, skip=technique.skip)
