"""XTC: layers left out, and what stays stored as signs, both learned back by distillation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from thrifty import extras
from thrifty.arrays import Floats
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.formats.linear import DenseLinear, SignLinear
from thrifty.models.model import Model
from thrifty.registry import technique
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.cutting import Structure, cut
from thrifty.weights.structure import LinearInfo, linears
from thrifty.weights.technique import KEPT, OUTSIDE, Preparation, Technique, error_of, exchange, options_of, tell

if TYPE_CHECKING:
    from thrifty.training.loop.distilling import Rounding

LEVELS = {"binary": 2, "ternary": 3}


@technique(
    stage="weights",
    card=Card(
        title="XTC: Extreme Compression for Pre-trained Transformers Made Simple and Efficient",
        paper="arXiv 2206.01859",
        year=2022,
        mechanism="Every other layer is left out and the rest learns from the whole model; then weights are binary or "
        "ternary in every pass and one long distillation of predictions and hidden states trains what they stand for.",
        claim="BERT-base, 32 times smaller by 1-bit weights: almost no loss on GLUE; 50 times with 5 layers: 97 %",
        limits=(
            "a language model learns the calibration text; the paper's classifiers their tasks' data, augmented",
            "by default a few steps; the paper takes 18 epochs, and 36 for the layers: give a long text and many steps",
            "the loss has no attention maps, and hidden states are compared behind layers alone",
            "one scale a group of columns; the paper's one a matrix",
            "embeddings, output matrix and norms neither train nor change; the paper's word embeddings are 1-bit too",
            "activations are not rounded in training; the kernels round them to 8 bits a block of 32, the paper a row",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class XTC(Technique):
    """every: one of so many layers stays, the last of each; 1: all. weights: what the linears become, in groups of
    columns (a multiple of 32). reduction_steps: of distillation before rounding, where layers were left out; steps: of
    it with rounding; each on `batch` sequences of the calibration text, at `rate`, which rises over the first
    twentieth.
    """

    needs_calibration: ClassVar[bool] = True

    every: Annotated[int, Field(ge=1, le=1000)] = 1
    weights: Literal["binary", "ternary"] = "ternary"
    group: Annotated[int, Field(ge=32, le=1 << 20, multiple_of=32)] = 64
    reduction_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 50
    steps: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    batch: Annotated[int, Field(ge=1, le=4096)] = 2
    rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def check(self, model: Model) -> None:
        """Raise RecipeError for a model with fewer layers than one of `every`."""
        if self.every > len(model.config.layers):
            raise RecipeError(
                f"technique '{self.name}' keeps one of every {self.every} layers and the model has "
                f"{len(model.config.layers)}: use a smaller number"
            )

    def kept(self, layers: int) -> list[int]:
        """The teacher's layers that stay: of 12 and every second one 1, 3, 5, 7, 9, 11 (§4, appendix)."""
        return list(range(self.every - 1, layers, self.every))

    def rounded(self, weight: Floats) -> Floats:
        """What the format makes of a weight [out, in] (§3: sign times mean, or the threshold 0.7·mean|w|)."""
        return SignLinear.quantize(weight, LEVELS[self.weights], self.group).dequantize()

    def apply(self, model: Model, preparation: Preparation) -> None:
        """See Technique."""
        teacher = replace(model, linears=dict(model.linears), report=list(model.report))
        kept = self.kept(len(model.config.layers))
        cut(model, Structure(layers=kept))
        names = [info.name for info in linears(model) if info.role not in OUTSIDE + KEPT]
        given, told = dict(model.linears), {entry.name: entry for entry in model.report}
        if self.every > 1 and self.reduction_steps:
            for name, weight in self._trained(model, teacher, names, None, self.reduction_steps, preparation).items():
                exchange(model, name, DenseLinear.from_weight(weight, bias=model.linears[name].bias))
        if self.steps:
            weights = self._trained(model, teacher, names, self.rounded, self.steps, preparation)
        else:
            weights = {name: model.linears[name].dequantize() for name in names}
        for name in names:
            preparation.before()
            before = LinearInfo(name, given[name])
            stored = SignLinear.quantize(weights.pop(name), LEVELS[self.weights], self.group, before.linear.bias)
            report = error_of(before, stored, told.get(name)) if preparation.errors else None
            exchange(model, name, stored)
            if report is not None:
                tell(model, report)

    def version(self, before: str) -> str:
        """Another checkpoint's where layers went, as of a StructureTechnique."""
        if self.every == 1:
            return super().version(before)
        checkpoint, plus, rest = before.partition("+")
        return f"{checkpoint}~{self.name}{options_of(self)}{plus}{rest}"

    def _trained(
        self,
        model: Model,
        teacher: Model,
        names: list[str],
        rounding: Rounding | None,
        steps: int,
        preparation: Preparation,
    ) -> dict[str, Floats]:
        """The weights of the linears after distillation, fp32."""
        extras.require_torch(f"technique '{self.name}'")
        from thrifty.training.loop.batches import Batches
        from thrifty.training.loop.checkpoint import Checkpoint
        from thrifty.training.loop.distilling import Distillation, distil
        from thrifty.training.loop.loop import Plan

        text = preparation.text
        assert isinstance(text, CalibrationSet), "prepare gives it where calibration is needed"
        part = "layers" if rounding is None else "signs"
        return distil(
            model,
            names,
            Distillation(teacher, dict(enumerate(self.kept(len(teacher.config.layers)))), rounding),
            Batches(text.sequences, self.batch, self.seed),
            Plan(steps, self.rate, warm_up=steps // 20, seed=self.seed),
            checkpoint=Checkpoint.of(
                preparation.results.folder, f"xtc-{part}", f"{self} {teacher.version} {part} {text.label}"
            ),
            say=preparation.stepping(self.name, "learning without its layers" if rounding is None else "training"),
        )
