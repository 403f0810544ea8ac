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
from thrifty.weights.results import Result
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import PlacedTechnique, Preparation, error_of, exchange, tell

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
        results = preparation.results
        for layer in self.merged_layers(model):
            unit = f"layers.{layer}.mlp.experts"
            made = results.of(unit)
            for result in self._results(model, layer, preparation, unit) if made is None else made:
                assert isinstance(result.value, PackedLinear)
                exchange(model, result.name, result.value)
                if result.report is not None:
                    tell(model, result.report)
            if made is None:
                results.close(unit)

    def _results(self, model: Model, layer: int, preparation: Preparation, unit: str) -> Iterator[Result]:
        """What takes the places of a layer's experts, made now."""
        assert preparation.calibration is not None, "the technique needs calibration"
        preparation.before()
        strengths = _strengths(model, layer, preparation.calibration)
        told = {entry.name: entry for entry in model.report}
        for first, second in self.pairs(layer, len(strengths["gate"])):
            for part in PARTS:
                preparation.before()
                given = [ExpertLinear(_info(model, layer, part, one), strengths[part][one]) for one in (first, second)]
                merged = self.merge(*given)
                for (info, _), packed in zip(given, merged, strict=True):
                    report = error_of(info, packed, told.get(info.name)) if preparation.errors else None
                    yield preparation.results.keep(unit, Result(info.name, packed, report))

    def merged_layers(self, model: Model) -> Iterator[int]:
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
