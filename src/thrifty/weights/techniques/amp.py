"""AMP: attention heads and MLP neurons whose activations say least are left out, the same share in every layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from thrifty.arrays import Floats, Integers, largest
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.model import Model
from thrifty.registry import technique
from thrifty.weights.calibration import Calibration
from thrifty.weights.cutting import Structure
from thrifty.weights.recovery import Recovery, recover
from thrifty.weights.structure import LinearInfo
from thrifty.weights.structure_technique import StructureTechnique
from thrifty.weights.technique import Preparation


@technique(
    stage="weights",
    card=Card(
        title="Efficient LLMs with AMP: Attention Heads and MLP Pruning",
        paper="arXiv 2504.21174",
        year=2025,
        mechanism="A head is scored by the size of what it adds to the hidden state on calibration text, a neuron by "
        "the size of its activation; every layer loses the same share of both and is physically smaller.",
        claim="LLaMA-7B, 20 % pruned, commonsense tasks: 64.52 on average (LLM-Pruner 62.19); 1.25 times as fast",
        limits=(
            (
                "grouped queries: the paper and its code have none. Heads are left out in whole steps that keep all KV "
                'heads equally used (`kv_heads = "each"`: equally many query heads of every KV head) or a KV head with '
                'all its query heads (`"whole"`), so that few shares of heads are possible'
            ),
            (
                "what rounding the heads adds or misses is made up for by neurons, by weights counted; the official "
                "code adds (heads / neurons)·(share − heads that went / heads), which does not keep the count"
            ),
            "the share is of the weights in attention and MLP; in the official code of all, embeddings included",
            "calibrated with this project's documentation by default; the paper: 50 prompts of alpaca-cleaned",
            (
                "recovery is off by default (`recovery` = 0 steps): LoRA as in the paper (rank 8, α 16, dropout 0.05, "
                "all linears of the layers, 3e-4), but on the calibration text, 4 sequences a step, a cosine schedule "
                "in place of two epochs of alpaca-cleaned at 16, AdamW with 0.9 and 0.95; `distil` learns the whole "
                "model's predictions"
            ),
            "layers with experts, recurrent layers and layers of their own widths are refused",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class AMP(StructureTechnique):
    """share: of the weights of attention and MLP that goes. kv_heads: see the card. heads: whether heads go too, or
    neurons alone. recovery: steps of LoRA afterwards, each on `batch` sequences of the calibration text, at `rate`,
    with rank, alpha and dropout; distil: from the predictions of the whole model instead of the text.
    """

    needs_calibration: ClassVar[bool] = True

    share: Annotated[float, Field(gt=0, lt=0.9)] = 0.2
    heads: bool = True
    kv_heads: Literal["each", "whole"] = "each"
    recovery: Annotated[int, Field(ge=0, le=100_000)] = 0
    batch: Annotated[int, Field(ge=1, le=1024)] = 4
    rate: Annotated[float, Field(gt=0, le=0.1)] = 3e-4
    rank: Annotated[int, Field(ge=1, le=512)] = 8
    alpha: Annotated[float, Field(gt=0, le=4096)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    distil: bool = False

    def check(self, model: Model) -> None:
        """Raise RecipeError for a model without the parts that go, and a share that would leave none of them."""
        config = model.config
        for index, layer in enumerate(config.layers):
            if layer.experts or layer.mixer != "attention" or layer.has_widths or layer.intermediate_size is not None:
                raise RecipeError(
                    f"technique '{self.name}' prunes heads and neurons of layers that attend, have no experts and are "
                    f"as wide as the model; layers.{index} is of another kind: use another technique for this model"
                )
        sizes(config, self.share, self.heads, self.kv_heads)

    def choose(self, model: Model, calibration: Calibration | None) -> Structure:
        """What stays of every layer: heads by their projected activations, neurons by their own."""
        assert calibration is not None, "prepare shows it"
        config = model.config
        heads_left, neurons_left = sizes(config, self.share, self.heads, self.kv_heads)
        heads: dict[int, list[int]] = {}
        neurons: dict[int, list[int]] = {}
        for layer in range(len(config.layers)):
            output, down = (
                LinearInfo(name, model.linears[name])
                for name in (f"layers.{layer}.attention.output", f"layers.{layer}.mlp.down")
            )
            if heads_left < config.heads:
                importance = head_importance(read(calibration, output), output.linear.dequantize(), config.heads)
                heads[layer] = kept_heads(importance, heads_left, config.kv_heads, self.kv_heads).tolist()
            neurons[layer] = np.sort(largest(neuron_importance(read(calibration, down)), neurons_left)).tolist()
        return Structure(heads=heads or None, neurons=neurons)

    def apply(self, model: Model, preparation: Preparation) -> None:
        """See Technique; with recovery behind it."""
        before = replace(model, linears=dict(model.linears), report=list(model.report))
        super().apply(model, preparation)
        if self.recovery:
            recovery = Recovery(self.recovery, self.batch, self.rank, self.alpha, self.dropout, self.rate, self.distil)
            recover(model, recovery, preparation, self.name, before if self.distil else None)


def read(calibration: Calibration, linear: LinearInfo) -> Floats:
    """What a linear reads on the text, fp32 [tokens, columns]. Raises RecipeError where that is no finite numbers."""
    inputs = calibration(linear).inputs
    if not np.isfinite(inputs).all():
        raise RecipeError(f"{linear.name} reads numbers that are NaN or infinite: a layer before it is damaged")
    return inputs


def head_importance(inputs: Floats, output: Floats, heads: int) -> Floats:
    """I_n, the mean over tokens of ‖h_n·W_O,n‖₁: fp32 [heads] (§3, projection of heads).

    inputs: what the output projection reads, fp32 [tokens, heads · head_dim]. output: W_O [hidden, heads · head_dim].
    """
    size = output.shape[1] // heads
    importance = np.empty(heads, np.float32)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        importance[head] = np.abs(inputs[:, own] @ output[:, own].T).sum(axis=1).mean()
    return importance


def neuron_importance(inputs: Floats) -> Floats:
    """The mean over tokens of |what the down projection reads|: fp32 [neurons] (§3, projection of neurons)."""
    importance: Floats = np.abs(inputs).mean(axis=0)
    return importance


def kept_heads(importance: Floats, count: int, kv_heads: int, kind: Literal["each", "whole"]) -> Integers:
    """The query heads that stay, rising: of every KV head its best ones, or the best KV heads whole (by their mean)."""
    grouped = importance.reshape(kv_heads, -1)
    members = np.arange(len(importance)).reshape(grouped.shape)
    if kind == "whole" or len(importance) == kv_heads:
        chosen = largest(grouped.mean(axis=1), count // grouped.shape[1])
        return np.sort(members[chosen].reshape(-1))
    each = count // kv_heads
    return np.sort(np.concatenate([own[largest(scores, each)] for own, scores in zip(members, grouped, strict=True)]))


def sizes(config: ModelConfig, share: float, heads: bool, kind: Literal["each", "whole"]) -> tuple[int, int]:
    """How many heads and neurons stay in each layer. Raises RecipeError where that is none.

    Heads go in the number nearest to the share that grouped queries allow; neurons make up for what is missing, so that
    the share of the weights holds to half a neuron.
    """
    per_kv = config.heads // config.kv_heads
    kind = "whole" if per_kv == 1 else kind  # then a query head is a KV head
    hidden, step = config.hidden_size, config.kv_heads if kind == "each" else per_kv
    query, key = 2 * hidden * config.head_dim, 2 * hidden * config.head_dim  # weights of a query head, of a KV head
    neuron = (3 if config.mlp == "gated" else 2) * hidden
    total = config.heads * query + config.kv_heads * key + config.intermediate_size * neuron
    heads_gone = min(round(share * config.heads / step), config.heads // step - 1) * step if heads else 0
    kv_gone = heads_gone // per_kv if kind == "whole" else 0
    neurons_gone = max(0, round((share * total - heads_gone * query - kv_gone * key) / neuron))
    if neurons_gone >= config.intermediate_size:
        raise RecipeError(
            f"a share of {share:g} takes {neurons_gone} neurons of {config.intermediate_size}: use a smaller share"
            + ("" if heads else ", or let heads go too")
        )
    return config.heads - heads_gone, config.intermediate_size - neurons_gone
