"""MaskLLM: which two of every four weights stay is learned through the whole model, the weights themselves frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from thrifty import extras
from thrifty.arrays import Flags, Floats
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.kernels.reference.sparse_2_4 import CANDIDATES, GROUP
from thrifty.models.model import Model
from thrifty.registry import technique
from thrifty.weights.calibration import Calibration, CalibrationSet, seen
from thrifty.weights.sparse_technique import SparseTechnique, Stored
from thrifty.weights.structure import LinearInfo, linears
from thrifty.weights.technique import Activations, Preparation
from thrifty.weights.techniques.magnitude import Magnitude
from thrifty.weights.techniques.sparsegpt import SparseGPT

DEVIATION = 0.01  # of the logits before training
SHOWN = 32  # sequences of the text that SparseGPT's masks are made with


@technique(
    stage="weights",
    card=Card(
        title="MaskLLM: Learnable Semi-Structured Sparsity for Large Language Models",
        paper="arXiv 2409.17481",
        year=2024,
        mechanism="Every four weights have a distribution over the six masks that keep two; Gumbel softmax draws soft "
        "masks from it, and the next token's loss trains it through the whole model; the likeliest mask stays.",
        claim="Llama-2-7B at 2:4, Wikitext perplexity: 6.72 (SparseGPT 10.42, dense 5.12)",
        limits=(
            (
                "trained on the calibration text, by default 4,096 tokens again and again; the paper: 2 billion, "
                "2000 steps of 256 sequences of 4096. Give a longer text and more steps for what the paper reports"
            ),
            "`rate` is 1e-3 by default: a short run needs more than the official scripts' 5e-5 times 10 for 2000 steps",
            "training holds six fp32 numbers a weight (logits, gradients, two moments; 1.5 each): `layers` bounds that",
            "sparse weight regularisation sums over the trained layers alone",
            "SparseGPT's masks, the prior, are made with the first 32 sequences of the text",
            "embeddings and output matrix stay dense, as in the paper; routers of experts too",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class MaskLLM(SparseTechnique):
    """values, group: how the kept weights are stored. steps: of training, each on `batch` sequences of the calibration
    text, at `rate`, which falls to a tenth. prior: the masks that training begins with, and how strongly (α).
    kappa, tau: scale of the logits and temperature, first and last. reward: λ of the squared weights that stay.
    """

    needs_calibration: ClassVar[bool] = True

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    batch: Annotated[int, Field(ge=1, le=4096)] = 4
    rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    prior: Literal["sparsegpt", "magnitude", "none"] = "sparsegpt"
    strength: Annotated[float, Field(ge=0, le=100)] = 3.0
    kappa: tuple[float, float] = (100.0, 500.0)
    tau: tuple[float, float] = (4.0, 0.05)
    reward: Annotated[float, Field(ge=0, le=1)] = 1e-5
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def check(self, model: Model) -> None:
        """Raise RecipeError as for every sparse technique, and for schedules that are none."""
        super().check(model)
        for name, ends in (("kappa", self.kappa), ("tau", self.tau)):
            if not all(0 < end < 1e6 for end in ends):
                raise RecipeError(f"technique '{self.name}': {name} is {ends}; both ends must be above 0 and below 1e6")

    def prune(self, linear: LinearInfo, calibration: Activations | None) -> tuple[Floats, Flags]:
        """The mask that training begins with; the weights stay as they are."""
        if self.prior == "sparsegpt":
            return SparseGPT(update=False).prune(linear, calibration)
        return Magnitude().prune(linear, calibration)

    def apply(self, model: Model, preparation: Preparation) -> None:
        """Learn the masks of all places together, then store what they keep. See Technique."""
        chosen = [linear for linear in linears(model) if self.selects(linear)]
        if not chosen:
            raise RecipeError(f"technique '{self.name}': layers and skip leave no linear to learn masks of")
        shapes = {linear.name: (linear.linear.out_features, linear.linear.in_features) for linear in chosen}
        learned = self.learn(model, self.starts(model, chosen, preparation), preparation)
        masks = {name: likeliest(logits).reshape(shapes[name]) for name, logits in learned.items()}
        Stored(masks=masks, values=self.values, group=self.group).apply(model, preparation)

    def starts(self, model: Model, chosen: list[LinearInfo], preparation: Preparation) -> dict[str, Floats]:
        """Logits before training, fp32 [groups, 6] by the names of the linears."""
        random = np.random.default_rng(self.seed)
        made: dict[str, Floats] = {}
        shown = self._shown(model, preparation)
        for linear in chosen:
            preparation.before()
            groups = linear.linear.out_features * linear.linear.in_features // GROUP
            logits = DEVIATION * random.standard_normal((groups, len(CANDIDATES)), np.float32)
            if self.prior != "none":
                mask = self.prune(linear, None if shown is None else shown(linear))[1]
                logits += prior(mask, float(logits.std()), self.strength)
            made[linear.name] = logits
        return made

    def _shown(self, model: Model, preparation: Preparation) -> Calibration | None:
        """What linears read of the part of the text that the prior is made with; None where it needs none."""
        text = preparation.text
        if self.prior != "sparsegpt" or text is None:
            return None
        return seen(model, replace(text, sequences=text.sequences[:SHOWN]), f"technique '{self.name}'")

    def learn(self, model: Model, starts: dict[str, Floats], preparation: Preparation) -> dict[str, Floats]:
        """Logits after training, of the same shapes."""
        extras.require_torch(f"technique '{self.name}'")
        from thrifty.training.loop.batches import Batches
        from thrifty.training.loop.checkpoint import Checkpoint
        from thrifty.training.loop.loop import Plan
        from thrifty.training.loop.masking import Rules, learn_masks

        text = preparation.text
        assert isinstance(text, CalibrationSet), "prepare gives it where calibration is needed"
        return learn_masks(
            model,
            starts,
            Rules(self.soften, self.reward_at),
            Batches(text.sequences, self.batch, self.seed),
            Plan(self.steps, self.rate, self.rate / 10, weight_decay=0.1, seed=self.seed),
            checkpoint=Checkpoint.of(preparation.results.folder, "maskllm", f"{self} {model.version} {text.label}"),
            say=preparation.stepping(self.name),
        )

    def soften(self, logits: Any, noise: Any, done: float) -> Any:
        """Soft masks at a share of the training, κ and τ on their ways: see `soft_mask`."""
        return soft_mask(logits, noise, between(self.kappa, done), between(self.tau, done))

    def reward_at(self, done: float) -> float:
        """λ·(1 − t / T): the sparse weight regularisation fades (official code)."""
        return self.reward * (1 - done)


def soft_mask(logits: Any, noise: Any, kappa: float, tau: float) -> Any:
    """Σ_k softmax((κ·π + g) / τ)_k · mask_k: [groups, 4], between 0 and 1 (§3.2, Gumbel softmax).

    logits π and Gumbel noise g: [groups, 6], torch tensors or arrays alike.
    """
    return softmax((kappa * logits + noise) / tau) @ like(logits, CANDIDATES.astype(np.float32))


def softmax(scores: Any) -> Any:
    """Along the last axis, of a tensor (with gradients) or an array."""
    if hasattr(scores, "softmax"):
        return scores.softmax(-1)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def like(example: Any, values: Floats) -> Any:
    """The values as what the example is, a tensor or an array."""
    make: Callable[..., Any] | None = getattr(example, "new_tensor", None)
    return values if make is None else make(values)


def prior(mask: Flags, deviation: float, strength: float) -> Floats:
    """What masks M₀ that are known add to the logits: strength·σ(π)·(⟨mask_k, M₀⟩ − 1), fp32 [groups, 6] (§3.3; −1, 0
    or 1 times strength·σ for masks that share none, one or both of their two weights).
    """
    shared = mask.reshape(-1, GROUP).astype(np.float32) @ CANDIDATES.astype(np.float32).T
    return np.float32(strength * deviation) * (shared - 1)


def likeliest(logits: Floats) -> Flags:
    """The mask of the largest logit of every group: bool [groups, 4]."""
    return CANDIDATES[logits.argmax(axis=-1)]


def between(ends: tuple[float, float], done: float) -> float:
    """On a line from the first value to the last."""
    return ends[0] + (ends[1] - ends[0]) * done
