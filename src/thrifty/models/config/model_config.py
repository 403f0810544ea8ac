"""What a decoder is, as data: every family of models is one `ModelConfig`, never a subclass.

The values are checked when a config is made, whatever file it came from, so a hostile file gives an error
that names the field instead of a crash or a giant allocation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from thrifty.errors import ConfigError
from thrifty.models.config.checks import LIMITS, check_choice, check_integer, check_number
from thrifty.models.config.layer_spec import (
    LayerSpec,
    RecurrentSpec,
    RopeConfig,
    RopeScaling,
    ScalingKind,
    layer_from,
)
from thrifty.models.config.tables import build

__all__ = [
    "LIMITS", "MLP", "Activation", "ExpertConfig", "LayerSpec", "ModelConfig", "Norm", "QKNorm", "RecurrentSpec",
    "RopeConfig", "RopeScaling", "ScalingKind", "as_dict", "check_choice", "check_integer", "check_number", "from_dict",
    "longrope_attention_factor", "yarn_attention_factor",
]  # fmt: skip

QKNorm = Literal["none", "head", "full"]
Activation = Literal["silu", "gelu_tanh"]
Norm = Literal["rms", "layer"]
MLP = Literal["gated", "plain"]


@dataclass(frozen=True)
class ExpertConfig:
    """A mixture of experts: each token takes the `active` most probable of `count` experts, plus the shared
    one.

    `normalise_probabilities` makes the taken probabilities sum to 1. `shared_intermediate_size` 0 means no
    shared expert; `shared_gate` multiplies its output by a learned sigmoid.
    """

    count: int
    active: int
    intermediate_size: int
    normalise_probabilities: bool
    shared_intermediate_size: int = 0
    shared_gate: bool = False

    def __post_init__(self) -> None:
        check_integer("num_experts", self.count, 1, LIMITS["experts.count"])
        check_integer("num_experts_per_tok", self.active, 1, self.count)
        check_integer("moe_intermediate_size", self.intermediate_size, 1, LIMITS["intermediate_size"])
        limit = LIMITS["shared_intermediate_size"]
        check_integer("shared_expert_intermediate_size", self.shared_intermediate_size, 0, limit)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a decoder's numerics. Sizes are counts of channels, tokens or heads.

    `norm_offset` is added to every norm's weight (1.0 where a checkpoint stores the weight minus one, as
    Gemma's do). `query_scale` multiplies q·k. `qk_norm` is "head" (each head on its own) or "full" (the
    whole projection). `attention_bias` is of query, key and value; `output_bias` of the projection after
    them. `final_softcap` and `attention_softcap` c squash x to c·tanh(x / c). `norm` is "rms", or "layer": the
    mean taken off, and a bias. `pre_norms` puts one before attention and before the MLP, `post_norms` one after
    each. `mlp` is "gated", or "plain": down(activation(up(x))). `residual_scale` multiplies what attention and MLP
    add to the hidden state, `logit_scale` the logits. `mask_id` is the token that a
    masked-diffusion model fills in: its rows see both ways, each predicts the token behind it; None: a causal model.
    """

    family: str
    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    context_length: int
    layers: tuple[LayerSpec, ...]
    norm_epsilon: float
    query_scale: float
    norm_offset: float = 0.0
    qk_norm: QKNorm = "none"
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    activation: Activation = "silu"
    embedding_scale: float = 1.0
    norm: Norm = "rms"
    pre_norms: bool = True
    post_norms: bool = False
    mlp: MLP = "gated"
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    final_softcap: float | None = None
    attention_softcap: float | None = None
    tied_embeddings: bool = False
    experts: ExpertConfig | None = None
    bos_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    mask_id: int | None = None

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_numerics()
        self._check_layers()
        for field in ("bos_ids", "eos_ids"):  # an id beyond the vocabulary is harmless: it is never produced
            for token in getattr(self, field):
                check_integer(field, token, 0, LIMITS["vocabulary_size"])
        if self.pad_id is not None:
            check_integer("pad_id", self.pad_id, -1, LIMITS["vocabulary_size"])
        if self.mask_id is not None:
            self._check_mask(self.mask_id)

    @property
    def query_width(self) -> int:
        """Channels of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Channels of all key (or value) heads together."""
        return self.kv_heads * self.head_dim

    @property
    def ropes(self) -> list[RopeConfig]:
        """The ropes of the layers that attend, each once."""
        return list(dict.fromkeys(layer.rope for layer in self.layers if layer.mixer != "recurrent"))

    @property
    def states(self) -> tuple[int, ...]:
        """fp32 numbers of each layer's recurrent state, 0 where it attends; empty where all do."""
        states = tuple(0 if layer.recurrent is None else layer.recurrent.state_numbers for layer in self.layers)
        return states if any(states) else ()

    def inner(self, index: int) -> int:
        """Neurons of the MLP of one layer without experts."""
        return self.layers[index].intermediate_size or self.intermediate_size

    def widths(self, index: int) -> tuple[int, int, int]:
        """Heads, KV heads and head_dim of the attention of one layer."""
        layer = self.layers[index]
        return layer.heads or self.heads, layer.kv_heads or self.kv_heads, layer.head_dim or self.head_dim

    def _check_sizes(self) -> None:
        for field in ("vocabulary_size", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim"):
            check_integer(field, getattr(self, field), 1, LIMITS[field])
        check_integer("context_length", self.context_length, 1, LIMITS["context_length"])
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads is {self.heads}; it must be a multiple of kv_heads, {self.kv_heads}.")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; it must be even.")

    def _check_mask(self, mask: int) -> None:
        check_integer("mask_token_id", mask, 0, self.vocabulary_size - 1)
        if any(layer.mixer != "attention" or layer.window is not None for layer in self.layers):
            raise ConfigError(
                f"mask_token_id is {mask}, and a layer is recurrent or has a window; the layers of a masked-diffusion "
                "model attend to all tokens, both ways."
            )

    def _check_numerics(self) -> None:
        check_number("norm_epsilon", self.norm_epsilon, 0.0, 1.0)
        check_number("norm_offset", self.norm_offset, 0.0, 1.0)
        check_number("query_scale", self.query_scale, 1e-9, 1e9)
        for field in ("embedding_scale", "residual_scale", "logit_scale"):
            check_number(field, getattr(self, field), 1e-9, 1e9)
        check_choice("qk_norm", self.qk_norm, ("none", "head", "full"))
        check_choice("activation", self.activation, ("silu", "gelu_tanh"))
        check_choice("norm", self.norm, ("rms", "layer"))
        check_choice("mlp", self.mlp, ("gated", "plain"))
        if self.mlp == "plain" and self.experts is not None:
            raise ConfigError("mlp is plain; experts are gated.")
        for field in ("final_softcap", "attention_softcap"):
            if getattr(self, field) is not None:
                check_number(field, getattr(self, field), 1e-6, 1e9)

    def _check_layers(self) -> None:
        check_integer("layers", len(self.layers), 1, LIMITS["layers"])
        for index, layer in enumerate(self.layers):
            name = f"layers.{index}"
            layer.check(name)
            heads, kv_heads, head_dim = self.widths(index)
            if heads % kv_heads or head_dim % 2:
                raise ConfigError(
                    f"{name} has {heads} heads, {kv_heads} KV heads and head_dim {head_dim}; heads must be a multiple "
                    "of KV heads, head_dim even."
                )
            check_integer(f"{name}.rope.dimension", layer.rope.dimension, 0, head_dim)
            if layer.experts and self.experts is None:
                raise ConfigError(f"{name}.experts is set; the model has no experts.")
        if all(layer.mixer == "recurrent" for layer in self.layers):
            raise ConfigError("all layers are recurrent; one at least must attend: the cache counts its tokens.")


def as_dict(config: ModelConfig) -> dict[str, Any]:
    """The config as plain dictionaries, lists and numbers: what a converted file stores as JSON."""
    return dataclasses.asdict(config)


def from_dict(data: Mapping[str, Any]) -> ModelConfig:
    """The reverse of `as_dict`, checked like any other source. Raises ConfigError that names the field."""
    fields = dict(data)
    layers = fields.get("layers")
    if not isinstance(layers, list | tuple):
        raise ConfigError("layers is missing or not a list.")
    check_integer("layers", len(layers), 1, LIMITS["layers"])
    fields["layers"] = tuple(layer_from(layer, f"layers.{index}") for index, layer in enumerate(layers))
    if fields.get("experts") is not None:
        fields["experts"] = build(ExpertConfig, fields["experts"], "experts")
    for field in ("bos_ids", "eos_ids"):
        fields[field] = tuple(fields.get(field) or ())
    return build(ModelConfig, fields, "config")


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """The multiplier of cosines and sines under YaRN (arXiv 2309.00071, §3.4): 0.1·mscale·ln(factor) + 1."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def longrope_attention_factor(factor: float, original_context: int) -> float:
    """The multiplier of cosines and sines under LongRoPE: sqrt(1 + ln(factor) / ln(original context))."""
    if factor <= 1.0 or original_context <= 1:
        return 1.0
    return math.sqrt(1.0 + math.log(factor) / math.log(original_context))
