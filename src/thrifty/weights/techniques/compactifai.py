"""CompactifAI: weights as matrix product operators, cut at their largest singular values and healed by training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from thrifty import extras
from thrifty.arrays import BFLOAT16, Floats
from thrifty.card import Card
from thrifty.errors import KernelError, RecipeError
from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear, TensorTrainLinear
from thrifty.models.model import Model
from thrifty.registry import technique
from thrifty.weights.calibration import Activations
from thrifty.weights.sparse_technique import finite
from thrifty.weights.structure import LinearInfo, linears
from thrifty.weights.technique import KEPT, OUTSIDE, PlacedTechnique, Preparation, WeightTechnique
from thrifty.weights.tensor_trains import Shape, decomposed

Values = Literal["bf16", "int8", "int4"]


@technique(
    stage="weights",
    card=Card(
        title="CompactifAI: Extreme Compression of Large Language Models using Quantum-Inspired Tensor Networks",
        paper="arXiv 2401.14109",
        year=2024,
        mechanism="Every matrix becomes a matrix product operator: reshaped to a tensor and split by SVDs that keep "
        "the χ largest singular values, fewer in later layers; brief training gives back what was lost.",
        claim="LLaMA-2-7B at 30 % of its parameters and 7 % of its memory: accuracy drops by 2 to 3 %",
        limits=(
            (
                "written from the abstract and second-hand accounts, no code is published: how dimensions are split, χ "
                "and the profile of layers are unconfirmed. Here all sites but the last have at most `block` rows and "
                "all but the first at most `block` columns"
            ),
            "χ follows from `share` of a matrix's numbers and falls in a line over layers to `taper` of the first's",
            "a matrix that its tensors would not make smaller stays as it is",
            "the down projection has the same share as the others; second-hand accounts call it sensitive: `skip` it",
            "two sites are the truncated SVD of a reshaped matrix; block = 1 is the plain truncated SVD",
            "tensors are always contracted with the input: W is never put together, also where that would be faster",
            "contracting takes χ·(in·o_1 + out·i_2) multiplications, which can be more than those of the whole matrix",
            "sides above 256: SVDs are randomised, with two power iterations",
            "the last site gives whole lanes of 16 rows, else o_1 is 1; a prime number of columns makes i_2 1",
            (
                "healing: 30 steps of 4 sequences of the calibration text by default, the whole model's predictions "
                "learned (KL); the paper: less than an epoch of chat data on 8 GPUs, from the text (`distil` = false)"
            ),
            (
                "16-bit tensors are bf16, the paper's fp16; `values` stores all tensors of a table alike, the paper "
                "mixes int4 and fp16: two tables with `layers` or `skip` do that"
            ),
            "the paper's 93 % of memory is against 32-bit weights: against 16-bit ones it is 84 %",
            "embeddings, output matrix, norms, routers and experts stay as they are",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class CompactifAI(PlacedTechnique):
    """sites: tensors of a matrix. block: see the card. share: of a matrix's numbers that its tensors may have, in the
    first layer; chi: the bond itself, in its place. taper: what is left of the share or bond in the last layer, of the
    first's. values, group: how tensors are stored. healing: steps of training all tensors together, each on `batch`
    sequences of the calibration text, at `rate`; distil: from the predictions of the model before, else the text.
    """

    sites: Literal[2, 3] = 2
    block: Annotated[int, Field(ge=1, le=256)] = 8
    share: Annotated[float, Field(gt=0, lt=1)] = 0.4
    chi: Annotated[int, Field(ge=1, le=65536)] | None = None
    taper: Annotated[float, Field(gt=0, le=1)] = 0.5
    values: Values = "bf16"
    group: Literal[32, 64, 128] = 32
    healing: Annotated[int, Field(ge=0, le=1_000_000)] = 30
    batch: Annotated[int, Field(ge=1, le=4096)] = 4
    rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    distil: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]
        """Only to heal."""
        return self.healing > 0

    def check(self, model: Model) -> None:
        """Raise RecipeError as for all that act on places, and where no matrix would become smaller."""
        super().check(model)
        if not self.bonds(model):
            raise RecipeError(
                f"technique '{self.name}': no linear that layers and skip leave would become smaller as {self.sites} "
                f"tensors (share {self.share:g}, chi {self.chi}): use a smaller chi or share"
            )

    def selects(self, linear: LinearInfo) -> bool:
        """Whether the matrix is meant: in the layers, no router and no expert."""
        meant = linear.role not in OUTSIDE + KEPT and ".experts." not in linear.name
        return meant and self.includes(linear.layer, (linear.name,))

    def units(self, model: Model) -> int:
        """In how many parts `apply` gives its results."""
        return len(self.bonds(model))

    def shape_of(self, linear: LinearInfo) -> Shape:
        """How a matrix is split."""
        return Shape.of(linear.linear.out_features, linear.linear.in_features, self.sites, self.block)

    def bonds(self, model: Model) -> dict[str, int]:
        """χ of every matrix that its tensors make smaller, by name."""
        last, found = max(1, len(model.config.layers) - 1), {}
        for linear in linears(model):
            if not self.selects(linear):
                continue
            kept = 1 - (1 - self.taper) * (linear.layer or 0) / last
            shape, size = self.shape_of(linear), linear.linear.out_features * linear.linear.in_features
            chi = shape.chi_of(int(kept * self.share * size)) if self.chi is None else max(1, round(kept * self.chi))
            if shape.parameters(chi) < size:
                found[linear.name] = max(shape.bonds(chi))
        return found

    def apply(self, model: Model, preparation: Preparation) -> None:
        """Split, heal all together, then store. See Technique."""
        stored = Stored(bonds=self.bonds(model), like=self)
        if self.healing:
            made: dict[str, list[Floats]] = {}
            for linear in linears(model):
                if stored.selects(linear):
                    preparation.before()
                    made[linear.name] = stored.split(linear)
            stored = replace(stored, healed=self.heal(model, made, preparation))
        stored.apply(model, replace(preparation, calibration=None))

    def heal(self, model: Model, made: Mapping[str, list[Floats]], preparation: Preparation) -> dict[str, list[Floats]]:
        """The tensors after training."""
        extras.require_torch(f"technique '{self.name}' with healing")
        from thrifty.training.loop.batches import Batches
        from thrifty.training.loop.checkpoint import Checkpoint
        from thrifty.training.loop.loop import Plan
        from thrifty.training.loop.tensor_healing import Tensors, heal_tensors

        text = preparation.text
        if text is None:
            raise RecipeError(f"technique '{self.name}' heals by training on a text and has none: pass one")
        shapes = {name: self.shape_of(LinearInfo(name, model.linears[name])) for name in made}
        return heal_tensors(
            model,
            {name: Tensors(sites, shapes[name].rows, shapes[name].columns) for name, sites in made.items()},
            Batches(text.sequences, self.batch, self.seed),
            Plan(self.healing, self.rate, warm_up=self.healing // 10, seed=self.seed),
            teacher=model if self.distil else None,
            checkpoint=Checkpoint.of(preparation.results.folder, "compactifai", f"{self} {model.version} {text.label}"),
            say=preparation.stepping(self.name, "healing"),
        )


@dataclass(frozen=True, kw_only=True)
class Stored(WeightTechnique):
    """Stores matrices as trains of tensors; it is no technique of its own. bonds: χ by name. like: the technique.
    healed: tensors that were trained, by name; without, they are made now.
    """

    name: ClassVar[str] = "compactifai"
    bonds: Mapping[str, int]
    like: CompactifAI
    healed: Mapping[str, list[Floats]] | None = None

    def selects(self, linear: LinearInfo) -> bool:
        return linear.name in self.bonds

    def split(self, linear: LinearInfo) -> list[Floats]:
        """The tensors. Raises RecipeError for weights that are no finite numbers."""
        return decomposed(finite(linear), self.like.shape_of(linear), self.bonds[linear.name], self.like.seed)

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        """See WeightTechnique."""
        shape = self.like.shape_of(linear)
        tensors = self.split(linear) if self.healed is None else self.healed[linear.name]
        try:
            sites = [packed(tensor, self.like.values, self.like.group) for tensor in tensors]
            return TensorTrainLinear(sites, shape.rows, shape.columns, linear.linear.bias)
        except KernelError as error:
            raise RecipeError(f"technique '{self.name}': '{linear.name}': {error}") from error


def packed(tensor: Floats, values: Values, group: int) -> PackedLinear:
    """A tensor [rows, columns] in its format."""
    if values == "bf16":
        return DenseLinear.from_weight(tensor, BFLOAT16, packed=True)
    return GroupLinear.quantize(tensor, int(values.removeprefix("int")), group)
