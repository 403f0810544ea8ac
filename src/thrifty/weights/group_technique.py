"""Techniques over a group of linears and the norm (or linear) before them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from thrifty.errors import RecipeError
from thrifty.formats.linear import PackedLinear
from thrifty.models.model import Model
from thrifty.weights.calibration import Activations
from thrifty.weights.groups import LinearGroup, Replacement, groups
from thrifty.weights.results import Result
from thrifty.weights.technique import PlacedTechnique, Preparation, exchange


@dataclass(frozen=True, kw_only=True)
class GroupTechnique(PlacedTechnique):
    """One method that changes what a group of linears reads and the linears themselves together: smoothing, scaling by
    activations, rotations. A technique writes `transform`.

    `layers` and `skip` leave a group alone where they leave out its layer, its source or one of its readers.
    """

    @abstractmethod
    def transform(self, group: LinearGroup, calibration: Activations | None) -> Iterable[Replacement]:
        """What takes the place of parts of the group, one at a time; nothing leaves it as it is.

        calibration: what the readers read, fp32 [tokens, columns], where `needs_calibration` is true. The model must do
        the same afterwards, but for what the technique costs: `groups.rescaled` moves a factor without a cost.
        """

    def covers(self, group: LinearGroup) -> bool:
        """Whether this technique is meant for the group, before `layers` and `skip`."""
        return True

    def selects(self, group: LinearGroup) -> bool:
        """Whether `apply` transforms the group."""
        return self.covers(group) and self.includes(group.layer, group.names)

    def apply(self, model: Model, preparation: Preparation) -> None:
        """See Technique. The report tells formats and bytes: a factor that moved is no error of a linear."""
        self.transform_groups(model, groups(model), preparation)

    def transform_groups(self, model: Model, chosen: Iterable[LinearGroup], preparation: Preparation) -> None:
        """Transform those of some groups that are selected, in their order."""
        results = preparation.results
        for group in chosen:
            if not self.selects(group):
                continue
            unit = f"{group.kind} {group.source.name}"
            made = results.of(unit)
            for result in self._results(group, preparation, unit) if made is None else made:
                self._replace(model, result.name, result.value)
            if made is None:
                results.close(unit)

    def _results(self, group: LinearGroup, preparation: Preparation, unit: str) -> Iterator[Result]:
        """What takes the place of parts of the group, made now."""
        preparation.before()
        shown = preparation.calibration
        activations = None if shown is None else shown(group.readers[0])
        for name, value in self.transform(group, activations):
            self._check_place(group, name)
            yield preparation.results.keep(unit, Result(name, value))

    def _check_place(self, group: LinearGroup, name: str) -> None:
        if name not in group.names:
            raise RecipeError(
                f"technique '{self.name}' replaced '{name}', which is not in the group of '{group.source.name}'; "
                f"it may replace {', '.join(group.names)}"
            )

    def _replace(self, model: Model, name: str, value: object) -> None:
        if isinstance(value, PackedLinear):
            exchange(model, name, value)
            return
        norm = np.asarray(value, np.float32)
        if name not in model.norms or norm.shape != model.norms[name].shape:
            raise RecipeError(f"technique '{self.name}' put an array of shape {list(norm.shape)} in place of '{name}'")
        model.norms = {**model.norms, name: norm}
