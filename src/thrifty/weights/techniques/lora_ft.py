"""LoRA-FT: low-rank additions to the rounded weights of a model, trained on a text and kept beside the codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty import extras
from thrifty.arrays import BFLOAT16, Floats
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.formats.dense import DenseLinear
from thrifty.formats.linear import PackedLinear
from thrifty.formats.low_rank import LowRankLinear
from thrifty.models.model import Model
from thrifty.registry import technique
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import PlacedTechnique, Preparation, error_of, exchange, tell

RANK_BLOCK = 32  # columns of U that the kernels read together


@technique(
    stage="weights",
    card=Card(
        title="LoRA-FT, the repair in An Empirical Study of LLaMA3 Quantization: From LLMs to MLLMs",
        paper="arXiv 2404.14047",
        year=2024,
        mechanism="The weights stay rounded as the techniques before it left them; a product of low rank beside each "
        "is trained on a text and stays beside it, so that the codes do not change.",
        claim="LLaMA3-8B at 4 bits and fewer: LoRA-FT on Alpaca does not make up for rounding on MMLU and is worse "
        "than the rounded model without it, other than on LLaMA and LLaMA2",
        limits=(
            "the study takes QLoRA and IR-QLoRA (NF4 weights); here the codes are those of the technique in front",
            "IR-QLoRA's calibration of information and its elastic connection are left out",
            "it learns the calibration text, the project's own documentation by default; the study Alpaca",
            "20 steps of 2 sequences by default, to see the direction; the study takes 10,000 of 16 (unconfirmed)",
            "rank 32, α 64, dropout 0.05, a rate of 2e-4 falling along half a cosine: the study's are unconfirmed",
            "the additions are bf16: 16·rank·(in + out) bits a linear, which the bits a weight count",
            "embedding, logits, routers and experts' gates are left alone",
            "a linear with a product of low rank already (milo) is refused: it has room for one",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class LoraFT(PlacedTechnique):
    """steps: of AdamW, each on `batch` sequences of the calibration text, at `rate`. rank: a multiple of 32. alpha:
    what was learned counts alpha / rank times. dropout: of what the first matrix reads while training.
    """

    needs_calibration: ClassVar[bool] = True

    steps: Annotated[int, Field(ge=1, le=100_000)] = 20
    batch: Annotated[int, Field(ge=1, le=1024)] = 2
    rate: Annotated[float, Field(gt=0, le=0.1)] = 2e-4
    rank: Annotated[int, Field(ge=RANK_BLOCK, le=512, multiple_of=RANK_BLOCK)] = RANK_BLOCK
    alpha: Annotated[float, Field(gt=0, le=4096)] = 64.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def check(self, model: Model) -> None:
        """As of the base; raises RecipeError for a linear that has a product of low rank already, or no place left."""
        super().check(model)
        chosen = self.inside(model)
        if not chosen:
            raise RecipeError(f"technique '{self.name}': `layers` and `skip` leave no linear to train; leave some in")
        taken = [info.name for info in chosen if isinstance(info.linear, LowRankLinear)]
        if taken:
            raise RecipeError(
                f"technique '{self.name}': '{taken[0]}' has a product of low rank already "
                f"({model.linears[taken[0]].label}) and has room for one: put another technique in front of it"
            )

    def apply(self, model: Model, preparation: Preparation) -> None:
        """See Technique."""
        self.check(model)
        given = self.inside(model)
        told = {entry.name: entry for entry in model.report}
        for info, (down, up) in zip(given, self._trained(model, given, preparation), strict=True):
            stored = beside(info.linear, down, up)
            report = error_of(info, stored, told.get(info.name)) if preparation.errors else None
            exchange(model, info.name, stored)
            if report is not None:
                tell(model, report)

    def _trained(self, model: Model, places: list[LinearInfo], preparation: Preparation) -> list[tuple[Floats, Floats]]:
        """Of each place (A [rank, in], (α / rank)·B [out, rank])."""
        extras.require_torch(f"technique '{self.name}'")
        from thrifty.training.loop.batches import Batches
        from thrifty.training.loop.checkpoint import Checkpoint
        from thrifty.training.loop.healing import additions
        from thrifty.training.loop.loop import Plan
        from thrifty.training.loop.lora import LoraOptions

        text = preparation.text
        assert isinstance(text, CalibrationSet), "prepare gives it where calibration is needed"
        added, _ = additions(
            model,
            [info.name for info in places],
            Batches(text.sequences, self.batch, self.seed),
            Plan(self.steps, self.rate, seed=self.seed),
            LoraOptions(self.rank, self.alpha, self.dropout),
            checkpoint=Checkpoint.of(preparation.results.folder, "lora-ft", f"{self} {model.version} {text.label}"),
            say=preparation.stepping(self.name),
        )
        return [added[info.name].factors() for info in places]


def beside(linear: PackedLinear, down: Floats, up: Floats) -> LowRankLinear:
    """y = W·x + up·(down·x) + b with the stored W [out, in] as it is; down [rank, in] and up [out, rank] in bf16."""
    arrays = {name: array for name, array in linear.state().items() if name != "bias"}
    base = PackedLinear.from_state(linear.meta(), arrays)
    parts = [DenseLinear.from_weight(part, BFLOAT16, packed=True) for part in (down, up)]
    return LowRankLinear(base, parts[0], parts[1], linear.bias)
