"""Techniques that merge the experts of a mixture two by two."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from thrifty.arrays import Floats
from thrifty.errors import RecipeError
from thrifty.formats.linear import PackedLinear
from thrifty.models.model import Model
from thrifty.weights.calibration import Calibration
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import PlacedTechnique, Preparation, store

PARTS = ("gate", "up", "down")


class ExpertLinear(NamedTuple):
    """A linear of an expert, and how large what it reads is.

    strength: fp32 [in_features], the ‖·‖₂ of every column of its inputs on calibration text; zeros where no token was
    sent to the expert.
    """

    info: LinearInfo
    strength: Floats


@dataclass(frozen=True, kw_only=True)
class ExpertPairs(PlacedTechnique):
    """One method of storing two experts in the bytes of one. A technique writes `merge`.

    Only routed experts are merged; the router still chooses among all of them. `layers` and `skip` leave a layer's
    experts alone, all or none of a layer.
    """

    needs_calibration = True

    @abstractmethod
    def merge(self, first: ExpertLinear, second: ExpertLinear) -> tuple[PackedLinear, PackedLinear]:
        """What takes the places of two linears of one shape: the same gate, up or down of two experts."""

    @abstractmethod
    def pairs(self, layer: int, count: int) -> list[tuple[int, int]]:
        """Which of `count` experts of a layer are merged, each in one pair."""

    def check(self, model: Model) -> None:
        """Raise RecipeError for a model without experts, or with an odd number of them."""
        super().check(model)
        if not any(layer.experts for layer in model.config.layers) or model.config.experts is None:
            raise RecipeError(
                f"technique '{self.name}' merges experts, and this {model.config.family} model has none: use it on a "
                "mixture of experts"
            )
        count = model.config.experts.count
        if count % 2:
            raise RecipeError(
                f"technique '{self.name}' merges experts two by two; this model has {count} a layer: it takes an even "
                "number"
            )

    def apply(self, model: Model, preparation: Preparation) -> None:
        """See Technique. A layer's experts are all looked at before the first of them is merged."""
        assert preparation.calibration is not None, "the technique needs calibration"
        for layer in self._layers(model):
            preparation.before()
            strengths = _strengths(model, layer, preparation.calibration)
            for first, second in self.pairs(layer, len(strengths["gate"])):
                for part in PARTS:
                    preparation.before()
                    given = [
                        ExpertLinear(_info(model, layer, part, expert), strengths[part][expert])
                        for expert in (first, second)
                    ]
                    for one, packed in zip(given, self.merge(*given), strict=True):
                        store(model, one.info, packed, preparation.errors)

    def _layers(self, model: Model) -> Iterator[int]:
        """Layers with experts that `layers` and `skip` leave in."""
        for index, layer in enumerate(model.config.layers):
            prefix = f"layers.{index}.mlp.experts."
            if layer.experts and self.includes(index, [name for name in model.linears if name.startswith(prefix)]):
                yield index


def _info(model: Model, layer: int, part: str, expert: int) -> LinearInfo:
    name = f"layers.{layer}.mlp.experts.{part}.{expert}"
    return LinearInfo(name, model.linears[name])


def _strengths(model: Model, layer: int, calibration: Calibration) -> dict[str, list[Floats]]:
    """‖·‖₂ of the columns that each part of each expert reads; gate and up read the same."""
    assert model.config.experts is not None, "the layer has experts"
    count = model.config.experts.count
    made: dict[str, list[Floats]] = {}
    for part in ("gate", "down"):
        inputs = (calibration(_info(model, layer, part, expert)).inputs for expert in range(count))
        made[part] = [np.sqrt(np.square(rows, dtype=np.float32).sum(axis=0)) for rows in inputs]
    return made | {"up": made["gate"]}
