"""Techniques that scale the columns of a group's readers before these are stored in fewer bytes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from thrifty.arrays import Floats
from thrifty.formats.linear import PackedLinear
from thrifty.models.model import Model
from thrifty.weights.calibration import Activations
from thrifty.weights.group_technique import GroupTechnique
from thrifty.weights.groups import LinearGroup, Replacement, layer_groups, rescaled
from thrifty.weights.results import Result, Results
from thrifty.weights.technique import Preparation, WeightTechnique


@dataclass(frozen=True, kw_only=True)
class ScaledRounding(GroupTechnique):
    """One method that makes linears easier to round: factors move from what a group's source writes into the readers'
    columns, and then all linears of the layer are stored. A technique writes `factors` and `storage`.

    A layer is a unit of results, and its linears are plain fp32 while its turn lasts. `layers` and `skip` leave groups
    alone as in GroupTechnique, and linears as in WeightTechnique.
    """

    @abstractmethod
    def factors(self, group: LinearGroup, calibration: Activations | None) -> Floats | None:
        """What the readers' columns are multiplied by, fp32 [width of the source], above 0; None leaves the group.

        calibration: what the readers read, in the model as it is stored up to the layer before.
        """

    @abstractmethod
    def storage(self) -> WeightTechnique:
        """What stores the linears once the factors moved; it is shown the same text, if it needs calibration."""

    def transform(self, group: LinearGroup, calibration: Activations | None) -> Iterable[Replacement]:
        """See GroupTechnique."""
        factors = self.factors(group, calibration)
        return () if factors is None else rescaled(group, factors)

    def apply(self, model: Model, preparation: Preparation) -> None:
        """See Technique. The report tells a linear's error against itself with its columns scaled."""
        results = preparation.results
        for layer in self.chosen_layers(model):
            unit = f"layers.{layer}"
            made = results.of(unit)
            for result in self._layer(model, layer, preparation) if made is None else made:
                value = result.value if made is not None else results.keep(unit, result).value
                self._put(model, replace(result, value=value))
            if made is None:
                results.close(unit)

    def chosen_layers(self, model: Model) -> list[int]:
        """The layers that `layers` leaves in."""
        return [layer for layer in range(len(model.config.layers)) if self.includes(layer, ())]

    def _layer(self, model: Model, layer: int, preparation: Preparation) -> Iterator[Result]:
        """What is new in a layer once it is scaled and stored."""
        linears, norms = dict(model.linears), dict(model.norms)
        aside = replace(preparation, results=Results())  # of a layer only the end is kept
        self.transform_groups(model, layer_groups(model, layer), aside)
        replace(self.storage(), layers=(layer,), skip=self.skip).apply(model, aside)
        reports = {entry.name: entry for entry in model.report}
        for name, linear in list(model.linears.items()):
            if linear is not linears[name]:
                yield Result(name, linear, reports.get(name))
        for name, norm in list(model.norms.items()):
            if norm is not norms[name]:
                yield Result(name, norm)

    def _put(self, model: Model, result: Result) -> None:
        """A result and what the report tells of it into the model."""
        if not isinstance(result.value, PackedLinear):
            model.norms = {**model.norms, result.name: result.value}
            return
        model.replace(result.name, result.value)
        if result.report is not None:
            told = [result.report if entry.name == result.name else entry for entry in model.report]
            known = any(entry.name == result.name for entry in model.report)
            model.report[:] = told if known else [*told, result.report]
