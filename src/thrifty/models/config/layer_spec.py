"""One layer of a decoder, as data: how it mixes tokens, how wide it is, and how it turns positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from thrifty.errors import ConfigError
from thrifty.models.config.checks import LIMITS, check_choice, check_integer, check_number
from thrifty.models.config.recurrent import Decay, RecurrentSpec
from thrifty.models.config.tables import build

__all__ = [
    "Decay", "LayerSpec", "Mixer", "RecurrentSpec", "RopeConfig", "RopeScaling", "ScalingKind", "layer_from",
    "recurrent_layer",
]  # fmt: skip

ScalingKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
Mixer = Literal["attention", "recurrent", "latent"]


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
class LayerSpec:
    """One layer. mixer: how a token meets the tokens before it; "recurrent" has its own `recurrent` sizes and neither
    window nor rope ("latent" is known by name only). window: tokens of attention (None: all). experts: whether its MLP
    is a mixture of experts. heads, kv_heads, head_dim: of its attention; intermediate_size: of its MLP; None for the
    model's.
    """

    window: int | None
    rope: RopeConfig
    experts: bool = False
    mixer: Mixer = "attention"
    recurrent: RecurrentSpec | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None

    @property
    def keeps_all(self) -> bool:
        """Whether it keeps every token's keys and values."""
        return self.mixer == "attention" and self.window is None

    @property
    def has_widths(self) -> bool:
        """Whether its attention has widths of its own."""
        return (self.heads, self.kv_heads, self.head_dim) != (None, None, None)

    def check(self, name: str) -> None:
        """Raise ConfigError naming the field where the parts do not belong together. name: such as "layers.3"."""
        check_choice(f"{name}.mixer", self.mixer, ("attention", "recurrent", "latent"))
        if self.window is not None:
            check_integer(f"{name}.window", self.window, 1, LIMITS["window"])
        for field in ("heads", "kv_heads", "head_dim", "intermediate_size"):
            if getattr(self, field) is not None:
                check_integer(f"{name}.{field}", getattr(self, field), 1, LIMITS[field])
        if self.experts and self.intermediate_size is not None:
            raise ConfigError(
                f"{name} has experts and intermediate_size {self.intermediate_size}; experts have sizes of their own: "
                "leave it out."
            )
        if (self.mixer == "recurrent") != (self.recurrent is not None):
            raise ConfigError(
                f"{name}.mixer is {self.mixer!r} and {name}.recurrent is {self.recurrent}; the mixer 'recurrent' has "
                "the sizes of its state there, no other has any."
            )
        if self.mixer == "recurrent" and (self.window is not None or self.rope.dimension or self.has_widths):
            raise ConfigError(
                f"{name} is recurrent and has a window, a rope or widths of attention; these belong to attention: "
                "leave them out (rope dimension 0)."
            )


def recurrent_layer(spec: RecurrentSpec, experts: bool = False) -> LayerSpec:
    """A layer of that recurrence."""
    return LayerSpec(None, RopeConfig(10000.0, 0), experts, "recurrent", spec)


def layer_from(data: object, field: str) -> LayerSpec:
    """A layer from an untrusted table, as `as_dict` makes it. Raises ConfigError naming the field."""
    if not isinstance(data, Mapping) or not isinstance(data.get("rope"), Mapping):
        raise ConfigError(f"{field} is not a table with a rope.")
    rope = {**data["rope"], **{name: tuple(data["rope"].get(name) or ()) for name in ("divisors", "sections")}}
    if rope.get("scaling") is not None:
        scaling = rope["scaling"]
        if not isinstance(scaling, Mapping):
            raise ConfigError(f"{field}.rope.scaling is not a table.")
        scaling = {**scaling, "short_factor": tuple(scaling.get("short_factor") or ())}
        scaling["long_factor"] = tuple(scaling.get("long_factor") or ())
        rope["scaling"] = build(RopeScaling, scaling, f"{field}.rope.scaling")
    fields = {**data, "rope": build(RopeConfig, rope, f"{field}.rope")}
    if fields.get("recurrent") is not None:
        fields["recurrent"] = build(RecurrentSpec, fields["recurrent"], f"{field}.recurrent")
    return build(LayerSpec, fields, field)
