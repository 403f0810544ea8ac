"""Recovery after pruning: LoRA on the linears of every layer, then merged into them."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty import extras
from thrifty.arrays import Floats
from thrifty.errors import RecipeError
from thrifty.formats.linear import DenseLinear, PackedLinear
from thrifty.models.model import Model
from thrifty.weights.structure import LinearInfo, linears
from thrifty.weights.technique import KEPT, OUTSIDE, Preparation, error_of, exchange, tell


@dataclass(frozen=True)
class Recovery:
    """steps: of AdamW, each on `batch` sequences of the calibration text. rank, alpha, dropout: LoRA's. rate: of
    learning. distil: learn the predictions of the model before it was pruned (KL) instead of the text itself.
    """

    steps: int
    batch: int
    rank: int
    alpha: float
    dropout: float
    rate: float
    distil: bool


def recover(model: Model, recovery: Recovery, preparation: Preparation, name: str, teacher: Model | None) -> None:
    """Train low-rank additions to all linears of the layers and merge them, in place. name: of the technique that needs
    it. teacher: the model before, where `recovery.distil`. The report tells how far they moved.

    Merged linears are bf16 where they were, else plain fp32, for a technique behind it to store: what was added lies
    on no grid. Raises RecipeError where there is no text.
    """
    what = f"technique '{name}'"
    extras.require_torch(what)
    if preparation.text is None:
        raise RecipeError(f"{what} recovers by training on a text and has none: pass a calibration text")
    trained = [info.name for info in linears(model) if info.role not in OUTSIDE + KEPT]
    from thrifty.training.loop.batches import Batches
    from thrifty.training.loop.checkpoint import Checkpoint
    from thrifty.training.loop.healing import heal
    from thrifty.training.loop.loop import Plan
    from thrifty.training.loop.lora import LoraOptions

    run = f"{what} {model.version} {recovery} {preparation.text.label}"
    healed = heal(
        model,
        trained,
        Batches(preparation.text.sequences, recovery.batch),
        Plan(recovery.steps, recovery.rate),
        LoraOptions(recovery.rank, recovery.alpha, recovery.dropout),
        teacher=teacher if recovery.distil else None,
        checkpoint=Checkpoint.of(preparation.results.folder, "recovery", run),
        say=preparation.stepping(name, "recovery"),
    )
    told = {entry.name: entry for entry in model.report}
    for place in trained:
        before = LinearInfo(place, model.linears[place])
        stored = _stored(before.linear, healed.weights.pop(place))
        report = error_of(before, stored, told.get(place)) if preparation.errors else None
        exchange(model, place, stored)
        if report is not None:
            tell(model, report)


def _stored(before: PackedLinear, weight: Floats) -> DenseLinear:
    """The merged weight [out, in], in bf16 where it was that."""
    if isinstance(before, DenseLinear) and before.label == "bf16":
        return DenseLinear.from_weight(weight, before.weight.dtype, before.packed, bias=before.bias)
    return DenseLinear.from_weight(weight, bias=before.bias)
