"""Techniques that scale the columns of a group's readers before these are stored in fewer bytes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace

from thrifty.arrays import Floats
from thrifty.models.model import Model
from thrifty.weights.calibration import Activations
from thrifty.weights.group_technique import GroupTechnique
from thrifty.weights.groups import LinearGroup, Replacement, layer_groups, rescaled
from thrifty.weights.technique import Preparation, WeightTechnique


@dataclass(frozen=True, kw_only=True)
class ScaledRounding(GroupTechnique):
    """One method that makes linears easier to round: factors move from what a group's source writes into the readers'
    columns, and then all linears of the layer are stored. A technique writes `factors` and `storage`.

    A layer's linears are plain fp32 while its turn lasts; all others are as they were, or as they are stored. `layers`
    and `skip` leave groups alone as in GroupTechnique, and linears as in WeightTechnique.
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
        for layer in range(len(model.config.layers)):
            if self.includes(layer, ()):
                self.transform_groups(model, layer_groups(model, layer), preparation)
                replace(self.storage(), layers=(layer,), skip=self.skip).apply(model, preparation)
