"""MiLo: weights rounded to 3 bits with a product of low rank that makes up for it, fitted in turns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from thrifty.arrays import Floats
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.formats.linear import GroupLinear, LowRankLinear, PackedLinear
from thrifty.kernels.reference.affine import require_finite
from thrifty.models.model import Model
from thrifty.registry import technique
from thrifty.weights.calibration import Activations
from thrifty.weights.grid import Grid
from thrifty.weights.low_rank_fit import factors
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import Preparation, WeightTechnique
from thrifty.weights.techniques.hqq import Solver, half_quadratic

COMPENSATOR_GROUP = 64
STEEPEST, STEEP_RANK = 9, 1024  # kurtosis above which a matrix has this rank
Ranks = Literal["uniform", "kurtosis", "frequency"]


@dataclass(frozen=True)
class Used(Activations):
    """use: tokens that were sent to an expert, over the mean of its layer's experts."""

    use: float = 1.0


@technique(
    stage="weights",
    card=Card(
        title="MiLo: Efficient Quantized MoE Inference with Mixture of Low-Rank Compensators",
        paper="arXiv 2504.02658",
        year=2025,
        mechanism="Rounds weights to 3 bits by HQQ and adds a product of low rank fitted to what is left, in turns; "
        "attention and shared experts get a high rank, routed experts a low one, by kurtosis or by use.",
        claim="Mixtral-8x7B at 22 % of its bytes keeps 87 % of WikiText2 perplexity and 97 % of zero-shot accuracy",
        limits=(
            "ranks are options with defaults for small models; the paper's dense rank is 512 to 1024",
            "a rank is cut at the columns of its matrix",
            "a compensator's scale is a group's largest magnitude; the authors take the largest value and clip some",
            "groups of the 3-bit base are consecutive columns of a row; which axis the authors use is unconfirmed",
            "groups of U are columns of one row; the authors' run on over the ends of rows",
            "a rank is stored in whole blocks of 32 columns of U and 16 rows of V",
            "groups keep a float16 minimum; the authors round zero points once more, to 8 bits",
            "above 256 rows and columns the decomposition is randomised, as the authors' is everywhere",
            "ranks by frequency count tokens of calibration text; the others need none",
            "W is not fitted once more after U and V were rounded; neither is it in the authors' code",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class Milo(WeightTechnique):
    """bits and group of the base's codes.

    dense_rank: of attention, shared experts and MLPs without experts; expert_rank: of routed experts, on average; 0: no
    compensator. ranks: how routed experts share that: `uniform`; `kurtosis`, each matrix by its own (2^(κ + k), k =
    log2 of expert_rank, less 2; none below 1); `frequency`, each expert by its tokens. iterations: turns after the
    first. compensator_bits: of U and V, in groups of 64. seed: of randomised decompositions.
    """

    bits: Literal[3, 4, 8] = 3
    group: Literal[32, 64, 128] = 64
    dense_rank: Annotated[int, Field(ge=0, le=4096)] = 64
    expert_rank: Annotated[int, Field(ge=0, le=1024)] = 16
    ranks: Ranks = "uniform"
    iterations: Annotated[int, Field(ge=0, le=100)] = 10
    compensator_bits: Literal[3, 4, 8] = 3
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]
        """Only to count what experts are used."""
        return self.ranks == "frequency"

    @property
    def bytes_need_weights(self) -> bool:  # type: ignore[override]
        """Ranks by kurtosis follow from the weights."""
        return self.ranks == "kurtosis"

    def check(self, model: Model) -> None:
        """Raise RecipeError where ranks by kurtosis or use are asked for and there are no experts."""
        super().check(model)
        if self.ranks != "uniform" and not any(layer.experts for layer in model.config.layers):
            raise RecipeError(
                f"technique '{self.name}': ranks = '{self.ranks}' shares ranks among experts, and this "
                f"{model.config.family} model has none: use ranks = 'uniform'"
            )

    def apply(self, model: Model, preparation: Preparation) -> None:
        """See Technique."""
        shown = preparation.calibration
        if shown is not None:
            preparation = replace(preparation, calibration=_with_use(model, shown))
        super().apply(model, preparation)

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        weight = linear.linear.dequantize()
        require_finite(weight, f"'{linear.name}'")
        rank = min(self._rank(linear, weight, calibration), weight.shape[1])
        grid = Grid(self.bits, self.group)
        if rank == 0:
            return half_quadratic(weight, grid, Solver(), linear.linear.bias)
        base, up, down = compensated(
            weight, rank, self.iterations, lambda w: half_quadratic(w, grid, Solver()), self.seed
        )
        left, right = (rounded(part, self.compensator_bits) for part in (up, down))
        return LowRankLinear(base, right, left, linear.linear.bias)

    def _rank(self, linear: LinearInfo, weight: Floats, calibration: Activations | None) -> int:
        """The rank of a matrix's compensator (§3.2.3), before it is cut."""
        if not routed(linear):
            return self.dense_rank
        if self.ranks == "kurtosis" and self.expert_rank:
            return kurtosis_rank(kurtosis(weight), self.expert_rank)
        if self.ranks == "frequency" and isinstance(calibration, Used):
            return round(calibration.use * self.expert_rank)
        return self.expert_rank


def compensated(
    weight: Floats, rank: int, iterations: int, quantize: Callable[[Floats], GroupLinear], seed: int = 0
) -> tuple[GroupLinear, Floats, Floats]:
    """Q, U [out, rank], V [rank, in] that make ‖W − Q − U·V‖_F small (eq. 3): Q₀ = quantize(W); then in each turn
    U·V is the best of its rank for W − Q (eq. 9), and Q = quantize(W − U·V) (eq. 5).
    """
    base = quantize(weight)
    up, down = factors(weight - base.dequantize(), rank, seed)
    for _ in range(iterations):
        base = quantize(weight - up @ down)
        up, down = factors(weight - base.dequantize(), rank, seed)
    return base, up, down


def rounded(factor: Floats, bits: int) -> GroupLinear:
    """U or V as symmetric codes in groups of 64 columns. 3 bits: q = clamp(round(7x / 2s) + 4, 0, 7) and
    x̂ = (q − 4)·2s / 7, s the largest magnitude of the group (§3.3).
    """
    if bits != 3:
        return GroupLinear.quantize(factor, bits, COMPENSATOR_GROUP, symmetric=True)
    rows, columns = factor.shape
    groups = -(-columns // COMPENSATOR_GROUP)
    padded = np.zeros((rows, groups * COMPENSATOR_GROUP), np.float32)
    padded[:, :columns] = factor
    grouped = padded.reshape(rows, groups, COMPENSATOR_GROUP)
    step = np.abs(grouped).max(axis=2) * np.float32(2 / 7)
    divisor = np.where(step == 0, np.float32(1), step)[..., None]
    codes = np.clip(np.rint(grouped / divisor) + 4, 0, 7).astype(np.uint8)
    return GroupLinear.from_codes(codes.reshape(rows, -1)[:, :columns], step, None, 3, COMPENSATOR_GROUP)


def kurtosis(weight: Floats) -> float:
    """The excess kurtosis of all elements, 0 for a normal distribution: heavy tails are hard to round (§3.2.2)."""
    deviations = weight.astype(np.float64) - weight.mean(dtype=np.float64)
    variance = float(np.square(deviations).sum()) / max(1, weight.size - 1)
    return 0.0 if variance == 0 else float(np.mean(deviations**4)) / variance**2 - 3


def kurtosis_rank(value: float, mean: int) -> int:
    """2^(κ + k) of the rounded kurtosis κ, with k = log2(mean) − 2: 2 for a mean rank of 16, 3 for 32; none below 1,
    1024 above 9.
    """
    whole = round(value)
    if whole < 1:
        return 0
    return STEEP_RANK if whole > STEEPEST else 1 << max(0, whole + round(math.log2(mean)) - 2)


def routed(linear: LinearInfo) -> bool:
    """Whether it belongs to one of the experts that a router chooses among."""
    return ".mlp.experts." in linear.name


def _with_use(model: Model, shown: Callable[[LinearInfo], Activations]) -> Callable[[LinearInfo], Activations]:
    """What linears read, of experts with their use: a layer's router reads every token."""
    experts = model.config.experts
    means: dict[int | None, float] = {}

    def seen(linear: LinearInfo) -> Activations:
        if not routed(linear) or experts is None:
            return Activations(np.empty((0, linear.linear.in_features), np.float32))  # nobody asks what they read
        if linear.layer not in means:
            router = f"layers.{linear.layer}.mlp.router"
            tokens = len(shown(LinearInfo(router, model.linears[router])).inputs)
            means[linear.layer] = max(1.0, tokens * experts.active / experts.count)
        inputs = shown(linear).inputs
        return Used(inputs, use=len(inputs) / means[linear.layer])

    return seen
