"""NxMiFormer: two of four weights and few bits, trained together by ADMM; formats by component under a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from thrifty import extras
from thrifty.arrays import Floats
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear, Sparse24Linear
from thrifty.kernels.reference.sparse_2_4 import GROUP, largest_two
from thrifty.models.model import Model
from thrifty.registry import technique
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.component_search import Component, Formats, assign, components
from thrifty.weights.sparse_technique import finite
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import PlacedTechnique, Preparation, error_of, exchange, tell

if TYPE_CHECKING:
    from thrifty.training.loop.admm import Constraint

Format = Literal["int8", "2:4-int8", "int4", "2:4-int4"]
FORMATS: tuple[Format, ...] = ("int8", "2:4-int8", "int4", "2:4-int4")  # from the most bits to the fewest
SCORED = 4  # sequences of the text that the search compares formats on


@technique(
    stage="weights",
    card=Card(
        title="NxMiFormer: Compressing Pre-trained Transformers via Low-Bit NxM Sparsity",
        paper="arXiv 2206.15014 (ADMM: NxMTransformer, 2110.15766)",
        year=2022,
        mechanism="Weights train with their quantised values in every pass while ADMM draws them to two of every four; "
        "then the others are left out for good. A search gives each layer's attention and MLP a format of its own.",
        claim="BERT's encoder 93 % smaller at 98.2 % of its accuracy; with formats by component 87.5 % at 99.5 %",
        limits=(
            "only abstracts were read, and no code was found: ρ, the intervals and the search's rules are our own",
            "a language model learns its own predictions on the calibration text; the paper's classifiers their tasks",
            "activations are rounded by the kernels, and not in training",
            "the state of ADMM is not kept on the way: a run that is killed in training begins this technique anew",
            "scales are of groups of 32 columns; of integers the paper has no group scales that are known",
            "the search compares one component at a time, untrained, and takes what each costs to add up",
            "a run that is killed begins its training again",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class NxMiFormer(PlacedTechnique):
    """format: of all linears. target: bits a weight, for which the search chooses a format for each layer's attention
    and MLP instead. steps: of training, the last `frozen` share of them under fixed masks. rho, interval: of ADMM.
    """

    needs_calibration: ClassVar[bool] = True

    format: Format = "2:4-int4"
    target: Annotated[float, Field(gt=3, le=8.5)] | None = None
    group: Literal[32, 64, 128] = 32
    steps: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    frozen: Annotated[float, Field(ge=0, le=1)] = 0.3
    rho: Annotated[float, Field(ge=0, le=100)] = 1e-3
    interval: Annotated[int, Field(ge=1, le=100_000)] = 5
    batch: Annotated[int, Field(ge=1, le=4096)] = 2
    rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def check(self, model: Model) -> None:
        """Raise RecipeError as every technique that acts on places, and for a layer whose columns are not fours."""
        super().check(model)
        for info in self.inside(model):
            if info.linear.in_features % GROUP:
                raise RecipeError(
                    f"technique '{self.name}': '{info.name}' has {info.linear.in_features} columns, which are not "
                    f'whole groups of {GROUP}: leave it out with skip = ["{info.name}"]'
                )

    def apply(self, model: Model, preparation: Preparation) -> None:
        """See Technique."""
        extras.require_torch(f"technique '{self.name}'")
        text = preparation.text
        assert isinstance(text, CalibrationSet), "prepare gives it where calibration is needed"
        chosen = self.inside(model)
        if not chosen:
            raise RecipeError(f"technique '{self.name}': layers and skip leave no linear to compress")
        for info in chosen:
            finite(info)
        formats = self.formats(model, chosen, text, preparation)
        weights = self.trained(model, formats, text, preparation)
        told = {entry.name: entry for entry in model.report}
        for info in chosen:
            preparation.before()
            stored = self.stored(weights.pop(info.name), formats[info.name], info.linear.bias)
            report = error_of(info, stored, told.get(info.name)) if preparation.errors else None
            exchange(model, info.name, stored)
            if report is not None:
                tell(model, report)

    def formats(
        self, model: Model, chosen: list[LinearInfo], text: CalibrationSet, preparation: Preparation
    ) -> dict[str, str]:
        """The format of each linear, by its name."""
        if self.target is None:
            return {info.name: self.format for info in chosen}
        parts = components(chosen)
        sizes: dict[Component, Formats] = {
            part: {form: sum(self._bytes(info, form) for info in part.linears) for form in FORMATS} for part in parts
        }
        costs = self._costs(model, parts, text, preparation)
        weights = sum(info.linear.out_features * info.linear.in_features for info in chosen)
        found = assign(sizes, costs, FORMATS, self.target * weights / 8)
        return {info.name: found[part] for part in parts for info in part.linears}

    def trained(
        self, model: Model, formats: dict[str, str], text: CalibrationSet, preparation: Preparation
    ) -> dict[str, Floats]:
        """Weights after ADMM, fp32 [out, in] by name: where the format is sparse two of every four are zero."""
        from thrifty.training.loop.admm import Schedule, constrained
        from thrifty.training.loop.batches import Batches
        from thrifty.training.loop.loop import Plan

        return constrained(
            model,
            {name: self.constraint(form) for name, form in formats.items()},
            Schedule(self.rho, self.interval, round((1 - self.frozen) * self.steps)),
            Batches(text.sequences, self.batch, self.seed),
            Plan(self.steps, self.rate, warm_up=self.steps // 20, seed=self.seed),
            teacher=model,
            say=preparation.stepping(self.name),
        )

    def constraint(self, form: str) -> Constraint:
        """Of a format: how it rounds, and the 2:4 projection where it is sparse."""
        from thrifty.training.loop.admm import Constraint

        def quantise(weight: Floats) -> Floats:
            return GroupLinear.quantize(weight, 4 if form.endswith("4") else 8, self.group, True).dequantize()

        return Constraint(quantise, nearest_sparse if form.startswith("2:4") else None)

    def stored(self, weight: Floats, form: str, bias: Any = None) -> PackedLinear:
        """A weight in its format; a sparse one's zeros are left out."""
        if not form.startswith("2:4"):
            return GroupLinear.quantize(weight, int(form.removeprefix("int")), self.group, True, bias)
        values: Literal["int8", "int4"] = "int8" if form.endswith("8") else "int4"
        return Sparse24Linear.from_weight(weight, largest_two(np.abs(weight)), values, self.group, bias)

    def _bytes(self, info: LinearInfo, form: str) -> int:
        sizes = (info.linear.out_features, info.linear.in_features)
        return self.stored(np.zeros(sizes, np.float32), form).nbytes

    def _costs(
        self, model: Model, parts: list[Component], text: CalibrationSet, preparation: Preparation
    ) -> dict[Component, Formats]:
        """KL from the model as it is when one component alone is rounded to a format, without training."""
        from thrifty.training.loop.comparing import Compared

        compared = Compared(model, text.sequences[:SCORED])
        costs: dict[Component, Formats] = {}
        say = preparation.counting(self.name, "its search for formats", len(parts))
        for part in parts:
            preparation.before()
            costs[part] = {
                form: compared.divergence(
                    {
                        info.name: DenseLinear.from_weight(self._rounded(info, form), packed=False)
                        for info in part.linears
                    }
                )
                for form in FORMATS
            }
            say(len(costs))
        return costs

    def _rounded(self, info: LinearInfo, form: str) -> Floats:
        weight = info.linear.dequantize()
        return self.stored(nearest_sparse(weight) if form.startswith("2:4") else weight, form).dequantize()


def nearest_sparse(weight: Floats) -> Floats:
    """Π: the two weights of largest magnitude of every four, zeros for the others; fp32 [out, in]."""
    kept: Floats = np.where(largest_two(np.abs(weight)), weight, np.float32(0))
    return kept
