"""Techniques that leave parts of a model out."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from thrifty.models.model import Model
from thrifty.weights.calibration import Calibration
from thrifty.weights.cutting import Structure, cut
from thrifty.weights.technique import Preparation, Technique, options_of


@dataclass(frozen=True, kw_only=True)
class StructureTechnique(Technique):
    """One method of choosing what a model can do without: layers, heads, neurons, experts. A technique writes `choose`.

    What is left has a ModelConfig of its own, and runs as any model does.
    """

    @abstractmethod
    def choose(self, model: Model, calibration: Calibration | None) -> Structure:
        """What stays. The model stays as it is.

        calibration: what each linear reads, where `needs_calibration` is true; ask in the decoder's order.
        """

    def check(self, model: Model) -> None:
        """Raise RecipeError where an option does not fit the model; what `choose` gives is checked when it is cut."""

    def apply(self, model: Model, preparation: Preparation) -> None:
        """See Technique."""
        preparation.before()
        cut(model, self.choose(model, preparation.calibration))

    def version(self, before: str) -> str:
        """Another checkpoint's, as it were: scores of heads and layers of the whole one say nothing of what is left."""
        checkpoint, plus, rest = before.partition("+")
        return f"{checkpoint}~{self.name}{options_of(self)}{plus}{rest}"
