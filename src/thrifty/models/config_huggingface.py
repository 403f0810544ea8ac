"""`config.json` of a Hugging Face checkpoint -> `ModelConfig`: what each family reads, and how it differs,
as data.

The reference for every default and rule is the `transformers` library, version 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from thrifty.errors import ConfigError, nearest
from thrifty.models.config import (
    LIMITS,
    Activation,
    ExpertConfig,
    LayerConfig,
    ModelConfig,
    QKNorm,
    RopeConfig,
)
from thrifty.models.config_fields import Fields
from thrifty.models.config_harmless import EXPLAINED
from thrifty.models.config_rope import LAYER_TYPES, extended_context, read_ropes

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
TOKEN_LIMIT = LIMITS["vocabulary_size"]

Windows = Callable[[Fields, int], list[int | None]]
Biases = Callable[[Fields], tuple[bool, bool, bool]]  # of query, key and value; of output; of the MLP
Mixture = Callable[[Fields, int], tuple[ExpertConfig, list[bool]]]


def _window(fields: Fields, default: int | None) -> int | None:
    if fields.raw("sliding_window") is None and (default is None or "sliding_window" in fields.data):
        return None
    return fields.integer("sliding_window", low=1, high=LIMITS["window"], default=default)


def _no_windows(fields: Fields, layers: int) -> list[int | None]:
    return [None] * layers


def _everywhere(default: int | None) -> Windows:
    return lambda fields, layers: [_window(fields, default)] * layers


def _by_type(rule: Callable[[Fields, int], bool]) -> Windows:
    """Windows where `layer_types` says so; without it, where `rule` of the layer's number does."""

    def windows(fields: Fields, layers: int) -> list[int | None]:
        enabled = fields.flag("use_sliding_window", default=fields.data.get("model_type") == "gemma3_text")
        window = _window(fields, 4096) if enabled else None
        fields.raw("sliding_window")
        sliding = [rule(fields, index) for index in range(layers)]
        types = fields.raw("layer_types")
        if types is not None:
            sliding = [name == "sliding_attention" for name in _layer_types(types, layers)]
        if window is None and enabled and any(sliding):
            raise ConfigError("sliding_window is missing; layer_types asks for it.")
        return [window if is_sliding else None for is_sliding in sliding]

    return windows


def _layer_types(types: object, layers: int) -> list[str]:
    if not isinstance(types, list) or len(types) != layers:
        raise ConfigError(f"layer_types must be a list with one entry for each of the {layers} layers.")
    for index, name in enumerate(types):
        if name not in LAYER_TYPES:
            known = " and ".join(LAYER_TYPES)
            raise ConfigError(f"layer_types.{index} is {name!r:.80}; only {known} are supported.")
    return types


def _upper_layers(fields: Fields, index: int) -> bool:
    return index >= fields.integer("max_window_layers", high=1 << 30, default=28)


def _lower_even_layers(fields: Fields, index: int) -> bool:
    return index % 2 == 0 and index < fields.integer("max_window_layers", high=1 << 30, default=28)


def _five_of_six(fields: Fields, index: int) -> bool:
    period = fields.integer("sliding_window_pattern", "_sliding_window_pattern", low=1, high=1024, default=6)
    return (index + 1) % period != 0


def _without_rope(fields: Fields, layers: int) -> list[bool]:
    """SmolLM3: which layers do not rotate (`no_rope_layers` has 0 there)."""
    interval = fields.integer("no_rope_layer_interval", low=1, high=1 << 20, default=4)
    flags = fields.integers("no_rope_layers", high=1)
    if not flags:
        return [(index + 1) % interval == 0 for index in range(layers)]
    if len(flags) < layers:
        raise ConfigError(f"no_rope_layers has {len(flags)} entries; the model has {layers} layers.")
    return [not flag for flag in flags[:layers]]


def _no_biases(fields: Fields) -> tuple[bool, bool, bool]:
    return False, False, False


def _attention_biases(fields: Fields) -> tuple[bool, bool, bool]:
    bias = fields.flag("attention_bias")
    return bias, bias, False


def _all_biases(fields: Fields) -> tuple[bool, bool, bool]:
    bias = fields.flag("attention_bias")
    return bias, bias, fields.flag("mlp_bias")


def _qkv_biases(fields: Fields) -> tuple[bool, bool, bool]:
    return fields.flag("qkv_bias", default=True), False, False


def _mixtral_experts(fields: Fields, layers: int) -> tuple[ExpertConfig, list[bool]]:
    return _experts(fields, "intermediate_size", normalise=True), [True] * layers


def _olmoe_experts(fields: Fields, layers: int) -> tuple[ExpertConfig, list[bool]]:
    return _experts(fields, "intermediate_size", fields.flag("norm_topk_prob")), [True] * layers


def _qwen_experts(fields: Fields, layers: int) -> tuple[ExpertConfig, list[bool]]:
    """Experts in every `decoder_sparse_step`-th layer that `mlp_only_layers` does not name."""
    step = fields.integer("decoder_sparse_step", low=1, high=LIMITS["layers"], default=1)
    dense = fields.integers("mlp_only_layers", high=LIMITS["layers"])
    sparse = [index not in dense and (index + 1) % step == 0 for index in range(layers)]
    shared = 0
    if fields.data.get("model_type") == "qwen2_moe":
        shared = fields.integer("shared_expert_intermediate_size", low=1, high=LIMITS["intermediate_size"])
    return _experts(fields, "moe_intermediate_size", fields.flag("norm_topk_prob"), shared), sparse


def _experts(fields: Fields, size: str, normalise: bool, shared: int = 0) -> ExpertConfig:
    limit = LIMITS["experts.count"]
    return ExpertConfig(
        count=fields.integer("num_experts", "num_local_experts", low=1, high=limit),
        active=fields.integer("num_experts_per_tok", low=1, high=limit),
        intermediate_size=fields.integer(size, low=1, high=LIMITS["intermediate_size"]),
        normalise_probabilities=normalise,
        shared_intermediate_size=shared,
        shared_gate=shared > 0,
    )


@dataclass(frozen=True)
class Family:
    """How the checkpoints of one `model_type` differ from Llama's.

    `windows`, `biases`, `mixture` and `nope` read fields; `defaults` are values for absent ones.
    """

    windows: Windows = _no_windows
    biases: Biases = _no_biases
    mixture: Mixture | None = None
    nope: Callable[[Fields, int], list[bool]] | None = None
    qk_norm: QKNorm = "none"
    theta: float = 10_000.0
    local_theta: float | None = None
    tied: bool = False
    gemma: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # fields that this family's checkpoints carry without effect


_GEMMA_SIZES = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}

FAMILIES: dict[str, Family] = {
    "llama": Family(biases=_all_biases),
    "mistral": Family(windows=_everywhere(4096)),
    "qwen2": Family(windows=_by_type(_upper_layers), biases=_qkv_biases),
    "qwen3": Family(
        windows=_by_type(_upper_layers),
        biases=_attention_biases,
        qk_norm="head",
        defaults={"head_dim": 128},
    ),
    "smollm3": Family(
        windows=_by_type(lambda fields, index: _without_rope(fields, index + 1)[index]),
        biases=_all_biases,
        nope=_without_rope,
        theta=2_000_000.0,
        tied=True,
        ignored=("max_window_layers",),
    ),
    "gemma3_text": Family(
        windows=_by_type(_five_of_six),
        biases=_attention_biases,
        qk_norm="head",
        theta=1_000_000.0,
        local_theta=10_000.0,
        tied=True,
        gemma=True,
        defaults=_GEMMA_SIZES,
    ),
    "mixtral": Family(
        windows=_everywhere(None),
        mixture=_mixtral_experts,
        theta=1_000_000.0,
        defaults={"rms_norm_eps": 1e-5},
    ),
    "qwen3_moe": Family(
        windows=lambda fields, layers: [_window(fields, 4096) if fields.flag("use_sliding_window") else None] * layers,
        biases=_attention_biases,
        mixture=_qwen_experts,
        qk_norm="head",
        ignored=("max_window_layers", "sliding_window"),
    ),
    "olmoe": Family(biases=_attention_biases, mixture=_olmoe_experts, qk_norm="full", defaults={"rms_norm_eps": 1e-5}),
    "qwen2_moe": Family(windows=_by_type(_lower_even_layers), biases=_qkv_biases, mixture=_qwen_experts),
}
SUPPORTED = (*FAMILIES, "gemma3")

_GEMMA_WRAPPER = (  # fields of a vision-language Gemma 3 that the language model does not need
    "boi_token_index",
    "eoi_token_index",
    "image_token_id",
    "image_token_index",
    "mm_tokens_per_image",
    "tie_word_embeddings",
    "vision_config",
)


def from_huggingface(data: object) -> ModelConfig:
    """The config of a Hugging Face checkpoint, from the parsed `config.json`.

    Raises ConfigError naming the field where one is missing, of the wrong type, out of range, or changes
    the numerics in a way that is not supported; for an unknown `model_type`, with the nearest known name.
    """
    fields = Fields(data)
    model_type = fields.text("model_type")
    if model_type == "gemma3":
        return _gemma_with_vision(fields)
    if model_type not in FAMILIES:
        for latent in ("kv_lora_rank", "q_lora_rank"):
            if fields.data.get(latent):
                raise ConfigError(f"model_type {model_type!r:.80}: {latent} is set; {EXPLAINED[latent]}.")
        raise ConfigError(f"model_type {model_type!r:.80} is not supported. {nearest(model_type[:40], SUPPORTED)}")
    family = FAMILIES[model_type]
    fields = Fields({**family.defaults, **fields.data})
    config = _read(fields, family, model_type)
    fields.raw(*family.ignored)
    fields.finish(model_type)
    return config


def _gemma_with_vision(fields: Fields) -> ModelConfig:
    text = fields.raw("text_config")
    if not isinstance(text, Mapping):
        raise ConfigError("text_config is missing or not a table.")
    fields.raw(*_GEMMA_WRAPPER)
    fields.finish("gemma3")
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    tokens = {name: fields.data[name] for name in names if fields.data.get(name) is not None}
    return from_huggingface({**text, **tokens, "model_type": "gemma3_text"})


def _read(fields: Fields, family: Family, name: str) -> ModelConfig:
    hidden = fields.integer("hidden_size", low=1, high=LIMITS["hidden_size"])
    heads = fields.integer("num_attention_heads", low=1, high=LIMITS["heads"])
    head_dim = _head_dim(fields, hidden, heads)
    trained = fields.integer("max_position_embeddings", low=1, high=LIMITS["context_length"])
    thetas = {"full_attention": family.theta, "sliding_attention": family.local_theta or family.theta}
    ropes = read_ropes(fields, head_dim, trained, thetas)
    context = extended_context(trained, ropes)
    layers, experts = _layers(fields, family, ropes, context)
    attention_bias, output_bias, mlp_bias = family.biases(fields)
    scale = fields.number("query_pre_attn_scalar", 1e-6, 1e9, 256) if family.gemma else head_dim
    cap = fields.raw("final_logit_softcapping") if family.gemma else None
    pad = fields.raw("pad_token_id")
    return ModelConfig(
        family="gemma3" if family.gemma else name,
        vocabulary_size=fields.integer("vocab_size", low=1, high=LIMITS["vocabulary_size"]),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", low=1, high=LIMITS["intermediate_size"]),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", low=1, high=heads, default=heads),
        head_dim=head_dim,
        context_length=context,
        layers=layers,
        norm_epsilon=fields.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        norm_offset=1.0 if family.gemma else 0.0,
        query_scale=float(scale) ** -0.5,
        qk_norm=family.qk_norm,
        attention_bias=attention_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        activation=_activation(fields, "hidden_activation" if family.gemma else "hidden_act"),
        embedding_scale=math.sqrt(hidden) if family.gemma else 1.0,
        post_norms=family.gemma,
        final_softcap=None if cap is None else fields.number("final_logit_softcapping", 1e-6, 1e9),
        tied_embeddings=fields.flag("tie_word_embeddings", family.tied),
        experts=experts,
        bos_ids=fields.token_ids("bos_token_id", TOKEN_LIMIT),
        eos_ids=fields.token_ids("eos_token_id", TOKEN_LIMIT),
        pad_id=None if pad is None else fields.integer("pad_token_id", low=-1, high=TOKEN_LIMIT),
    )


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if fields.raw("head_dim") is None and hidden % heads:
        raise ConfigError(f"hidden_size is {hidden}; it must be a multiple of num_attention_heads, {heads}.")
    return fields.integer("head_dim", low=2, high=LIMITS["head_dim"], default=hidden // heads)


def _layers(
    fields: Fields, family: Family, ropes: dict[str, RopeConfig], context: int
) -> tuple[tuple[LayerConfig, ...], ExpertConfig | None]:
    count = fields.integer("num_hidden_layers", low=1, high=LIMITS["layers"])
    windows = family.windows(fields, count)
    nope = family.nope(fields, count) if family.nope else [False] * count
    experts, sparse = family.mixture(fields, count) if family.mixture else (None, [False] * count)
    layers = []
    for window, still, mixed in zip(windows, nope, sparse, strict=True):
        rope = ropes["full_attention" if window is None else "sliding_attention"]
        if still:
            rope = RopeConfig(rope.theta, 0)
        layers.append(LayerConfig(window if window is None or window < context else None, rope, mixed))
    return tuple(layers), experts


def _activation(fields: Fields, name: str) -> Activation:
    value = fields.text(name, "gelu_pytorch_tanh" if name == "hidden_activation" else "silu")
    if value not in ACTIVATIONS:
        raise ConfigError(f"{name} {value!r:.80} is not supported. {nearest(value[:40], ACTIVATIONS)}")
    return ACTIVATIONS[value]
