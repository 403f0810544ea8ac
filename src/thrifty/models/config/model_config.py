"""What a decoder is, as data: every family of models is one `ModelConfig`, never a subclass.

The values are checked when a config is made, whatever file it came from, so a hostile file gives an error
that names the field instead of a crash or a giant allocation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from thrifty.errors import ConfigError

T = TypeVar("T")

ScalingKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
QKNorm = Literal["none", "head", "full"]
Activation = Literal["silu", "gelu_tanh"]
Norm = Literal["rms", "layer"]
MLP = Literal["gated", "plain"]

# Upper bounds of what a real model can ask for; a number beyond them is a corrupt or hostile file.
LIMITS = {
    "vocabulary_size": 1 << 24,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "shared_intermediate_size": 1 << 20,
    "layers": 1024,
    "heads": 4096,
    "kv_heads": 4096,
    "head_dim": 1024,
    "context_length": 1 << 30,
    "window": 1 << 30,
    "original_context": 1 << 30,
    "experts.count": 4096,
}


def check_integer(field: str, value: object, low: int, high: int) -> None:
    """Raise a `ConfigError` naming `field` unless `value` is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{field} is {_shown(value)}; it must be an integer from {low} to {high}.")


def check_number(field: str, value: object, low: float, high: float) -> None:
    """Raise a `ConfigError` naming `field` unless `value` is a finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{field} is {_shown(value)}; it must be a number from {low:g} to {high:g}.")


def check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a `ConfigError` naming `field` unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"{field} is {_shown(value)}; it must be one of: {', '.join(choices)}.")


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1 << 64:
        return "an integer beyond 64 bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context that a model was trained on.

    `attention_factor` multiplies the cosines and sines (linear, yarn, longrope). `original_context` is in tokens.
    `short_factor` and `long_factor` have one divisor for each of the `dimension / 2` frequencies (longrope).
    """

    kind: ScalingKind
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_choice("rope_scaling.rope_type", self.kind, ("linear", "dynamic", "llama3", "yarn", "longrope"))
        check_number("rope_scaling.factor", self.factor, 1e-3, 1e6)
        check_number("rope_scaling.attention_factor", self.attention_factor, 1e-6, 1e6)
        check_number("rope_scaling.low_freq_factor", self.low_frequency_factor, 1e-6, 1e6)
        check_number("rope_scaling.high_freq_factor", self.high_frequency_factor, 1e-6, 1e6)
        check_number("rope_scaling.beta_fast", self.beta_fast, 1e-6, 1e6)
        check_number("rope_scaling.beta_slow", self.beta_slow, 1e-6, 1e6)
        low = 0 if self.kind == "linear" else 1
        name = "rope_scaling.original_max_position_embeddings"
        check_integer(name, self.original_context, low, LIMITS["original_context"])
        if self.kind == "llama3" and self.high_frequency_factor <= self.low_frequency_factor:
            raise ConfigError(
                f"rope_scaling.high_freq_factor is {self.high_frequency_factor}; "
                f"it must be above low_freq_factor, {self.low_frequency_factor}."
            )
        for name in ("short_factor", "long_factor"):
            for value in getattr(self, name):
                check_number(f"rope_scaling.{name}", value, 1e-6, 1e9)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of one layer: the first `dimension` channels of a head turn; 0 means that none do
    (NoPE).

    `divisors`: one for each of the `dimension / 2` frequencies, whatever the scaling and the length; none where empty.
    `sections`: how many of these frequencies turn with a row's time, height and width (M-RoPE); empty: one position.
    """

    theta: float
    dimension: int
    scaling: RopeScaling | None = None
    divisors: tuple[float, ...] = ()
    sections: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_number("rope_theta", self.theta, 1.0 + 1e-6, 1e12)
        check_integer("rope dimension", self.dimension, 0, LIMITS["head_dim"])
        if self.dimension % 2:
            raise ConfigError(f"The rope dimension is {self.dimension}; it must be even.")
        if self.divisors and len(self.divisors) != self.dimension // 2:
            raise ConfigError(
                f"rope.divisors has {len(self.divisors)} entries; "
                f"it must have {self.dimension // 2}, half the rotated dimension."
            )
        for value in self.divisors:
            check_number("rope.divisors", value, 1e-6, 1e9)
        for count in self.sections:
            check_integer("rope.sections", count, 0, self.dimension // 2)
        if self.sections and (len(self.sections) != 3 or sum(self.sections) != self.dimension // 2):
            raise ConfigError(
                f"rope.sections is {list(self.sections)}; it must be 3 numbers that sum to {self.dimension // 2}, half "
                "the rotated dimension."
            )
        scaling = self.scaling
        if scaling is None:
            return
        if scaling.kind == "dynamic" and self.dimension < 4:
            raise ConfigError(f"The rope dimension is {self.dimension}; dynamic scaling needs at least 4.")
        if scaling.kind == "longrope":
            for name in ("short_factor", "long_factor"):
                if len(getattr(scaling, name)) != self.dimension // 2:
                    raise ConfigError(
                        f"rope_scaling.{name} has {len(getattr(scaling, name))} entries; "
                        f"it must have {self.dimension // 2}, half the rotated dimension."
                    )


@dataclass(frozen=True)
class LayerConfig:
    """One layer: `window` tokens of attention (None: all), its rope, and whether its MLP is a mixture of
    experts.
    """

    window: int | None
    rope: RopeConfig
    experts: bool = False


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
    add to the hidden state, `logit_scale` the logits.
    """

    family: str
    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    context_length: int
    layers: tuple[LayerConfig, ...]
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

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_numerics()
        self._check_layers()
        for field in ("bos_ids", "eos_ids"):  # an id beyond the vocabulary is harmless: it is never produced
            for token in getattr(self, field):
                check_integer(field, token, 0, LIMITS["vocabulary_size"])
        if self.pad_id is not None:
            check_integer("pad_id", self.pad_id, -1, LIMITS["vocabulary_size"])

    @property
    def query_width(self) -> int:
        """Channels of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Channels of all key (or value) heads together."""
        return self.kv_heads * self.head_dim

    def _check_sizes(self) -> None:
        for field in ("vocabulary_size", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim"):
            check_integer(field, getattr(self, field), 1, LIMITS[field])
        check_integer("context_length", self.context_length, 1, LIMITS["context_length"])
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads is {self.heads}; it must be a multiple of kv_heads, {self.kv_heads}.")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; it must be even.")

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
            if layer.window is not None:
                check_integer(f"layers.{index}.window", layer.window, 1, LIMITS["window"])
            check_integer(f"layers.{index}.rope.dimension", layer.rope.dimension, 0, self.head_dim)
            if layer.experts and self.experts is None:
                raise ConfigError(f"layers.{index}.experts is set; the model has no experts.")


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
    fields["layers"] = tuple(_layer(layer, f"layers.{index}") for index, layer in enumerate(layers))
    if fields.get("experts") is not None:
        fields["experts"] = _build(ExpertConfig, fields["experts"], "experts")
    for field in ("bos_ids", "eos_ids"):
        fields[field] = tuple(fields.get(field) or ())
    return _build(ModelConfig, fields, "config")


def _layer(data: object, field: str) -> LayerConfig:
    if not isinstance(data, Mapping) or not isinstance(data.get("rope"), Mapping):
        raise ConfigError(f"{field} is not a table with a rope.")
    rope = {**data["rope"], **{name: tuple(data["rope"].get(name) or ()) for name in ("divisors", "sections")}}
    if rope.get("scaling") is not None:
        scaling = rope["scaling"]
        if not isinstance(scaling, Mapping):
            raise ConfigError(f"{field}.rope.scaling is not a table.")
        scaling = {**scaling, "short_factor": tuple(scaling.get("short_factor") or ())}
        scaling["long_factor"] = tuple(scaling.get("long_factor") or ())
        rope["scaling"] = _build(RopeScaling, scaling, f"{field}.rope.scaling")
    return _build(LayerConfig, {**data, "rope": _build(RopeConfig, rope, f"{field}.rope")}, field)


def _build(kind: type[T], data: object, field: str) -> T:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{field} is not a table.")
    known = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            raise ConfigError(f"{field}.{name} is not a field of {kind.__name__}.")
    try:
        return kind(**data)
    except TypeError as error:
        raise ConfigError(f"{field}: {error}.") from error


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """The multiplier of cosines and sines under YaRN (arXiv 2309.00071, §3.4): 0.1·mscale·ln(factor) + 1."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def longrope_attention_factor(factor: float, original_context: int) -> float:
    """The multiplier of cosines and sines under LongRoPE: sqrt(1 + ln(factor) / ln(original context))."""
    if factor <= 1.0 or original_context <= 1:
        return 1.0
    return math.sqrt(1.0 + math.log(factor) / math.log(original_context))
