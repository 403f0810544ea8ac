"""Techniques that weigh each weight by how much the loss depends on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from thrifty import extras
from thrifty.arrays import Floats
from thrifty.errors import RecipeError
from thrifty.models.model import Model
from thrifty.weights.calibration import Activations
from thrifty.weights.structure import LinearInfo, linears
from thrifty.weights.technique import Preparation, WeightTechnique

PASS_BYTES = 1 << 30  # of squared gradients held at a time: beyond, the text passes the model again


@dataclass(frozen=True, kw_only=True)
class SensitiveTechnique(WeightTechnique):
    """One method of storing linears that reads `Activations.sensitivity`: F = Σ g² of each weight over the calibration
    text, in the model as it was before the technique changed anything.
    """

    needs_calibration: ClassVar[bool] = True

    def apply(self, model: Model, preparation: Preparation) -> None:
        """See Technique. At most `PASS_BYTES` of F are held at a time (one linear's at least); a model that has more
        runs, forward and backward, once for every so many, and its linears as they were are held until the last.
        """
        if preparation.text is None:
            raise RecipeError(f"technique '{self.name}' needs calibration text: pass a CalibrationSet")
        names = [linear.name for linear in linears(model) if self.selects(linear)]
        source = _Sensitivities(model, preparation, names, self.name)
        super().apply(model, replace(preparation, calibration=source))


class _Sensitivities:
    """F of the named linears, in their order; each can be asked for once."""

    def __init__(self, model: Model, preparation: Preparation, names: Sequence[str], technique: str) -> None:
        extras.require_torch(f"technique '{technique}'")
        assert preparation.text is not None, "a technique without a text raised before"
        self.model: Model | None = replace(model, linears=dict(model.linears))
        self.text, self.technique, self.preparation = preparation.text, technique, preparation
        self.batches = list(_batches(model, names))
        self.held: dict[str, Floats] = {}

    def __call__(self, linear: LinearInfo) -> Activations:
        """What a technique is given for the linear; it has no inputs. Raises RecipeError where gradients are not
        finite.
        """
        while linear.name not in self.held:
            batch = self.batches.pop(0)
            if linear.name in batch:  # else its results were made before an interruption
                self._run(batch)
        sensitivity = self.held.pop(linear.name)
        if not np.isfinite(sensitivity).all():
            raise RecipeError(
                f"technique '{self.technique}': gradients of '{linear.name}' on the calibration text have NaN or "
                "infinite values: the model overflows there; calibrate with another text, or leave the layer out with "
                "skip"
            )
        return Activations(np.empty((0, linear.linear.in_features), np.float32), sensitivity)

    def _run(self, names: Sequence[str]) -> None:
        from thrifty.reference.sensitivity import squared_gradients

        assert self.model is not None, "linears are asked for in the model's order"
        sequences = self.text.sequences
        say = self.preparation.counting(self.technique, "its gradients", len(sequences))
        self.held = squared_gradients(self.model, sequences, names, say)
        if not self.batches:
            self.model = None


def _batches(model: Model, names: Sequence[str]) -> Iterator[list[str]]:
    """The names, in order, so many together that F takes at most PASS_BYTES; one at least."""
    batch: list[str] = []
    held = 0
    for name in names:
        size = 4 * model.linears[name].out_features * model.linears[name].in_features
        if batch and held + size > PASS_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(name)
        held += size
    if batch:
        yield batch
