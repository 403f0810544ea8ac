"""`config.json` of a Hugging Face checkpoint -> `ModelConfig`, by what `config_families` says of its family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from thrifty.errors import ConfigError, nearest
from thrifty.models.config.families import FAMILIES, Family
from thrifty.models.config.fields import Fields
from thrifty.models.config.harmless import EXPLAINED
from thrifty.models.config.model_config import LIMITS, Activation, ExpertConfig, LayerSpec, ModelConfig, RopeConfig
from thrifty.models.config.own import OWN, from_own
from thrifty.models.config.rope import extended_context, read_ropes

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
TOKEN_LIMIT = LIMITS["vocabulary_size"]

SUPPORTED = (*FAMILIES, "gemma3", OWN)

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
    if model_type == OWN:
        return from_own(fields)
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
    ropes = read_ropes(fields, head_dim, trained, thetas, family.rotated)
    context = extended_context(trained, ropes)
    layers, experts = _layers(fields, family, ropes, context)
    attention_bias, output_bias, mlp_bias = family.biases(fields)
    scale = fields.number("query_pre_attn_scalar", 1e-6, 1e9, 256) if family.gemma else head_dim
    scales = _multipliers(fields) if family.multipliers else _Scales(float(scale) ** -0.5, 1.0, 1.0, 1.0)
    pad = fields.raw("pad_token_id")
    return ModelConfig(
        family=name.removesuffix("_text"),
        vocabulary_size=fields.integer("vocab_size", low=1, high=LIMITS["vocabulary_size"]),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", low=1, high=LIMITS["intermediate_size"]),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", low=1, high=heads, default=heads),
        head_dim=head_dim,
        context_length=context,
        layers=layers,
        norm_epsilon=fields.number(family.epsilon, 0.0, 1.0, 1e-6),
        norm_offset=1.0 if family.gemma else 0.0,
        query_scale=scales.query,
        qk_norm=family.qk_norm,
        attention_bias=attention_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        activation=_activation(fields, "hidden_activation" if family.gemma else "hidden_act"),
        embedding_scale=math.sqrt(hidden) if family.gemma else scales.embedding,
        norm=family.norm,
        pre_norms=family.pre_norms,
        post_norms=family.post_norms,
        mlp=family.mlp,
        residual_scale=scales.residual,
        logit_scale=scales.logits,
        final_softcap=_cap(fields, "final_logit_softcapping") if family.gemma else None,
        attention_softcap=_cap(fields, "attn_logit_softcapping") if name == "gemma2" else None,
        tied_embeddings=fields.flag("tie_word_embeddings", family.tied),
        experts=experts,
        bos_ids=fields.token_ids("bos_token_id", TOKEN_LIMIT),
        eos_ids=fields.token_ids("eos_token_id", TOKEN_LIMIT),
        mask_id=fields.integer("mask_token_id", low=0, high=TOKEN_LIMIT) if family.masks else None,
        pad_id=None if pad is None else fields.integer("pad_token_id", low=-1, high=TOKEN_LIMIT),
    )


class _Scales(NamedTuple):
    query: float
    embedding: float
    residual: float
    logits: float


def _multipliers(fields: Fields) -> _Scales:
    """Granite's: what transformers takes for absent ones is 1, of the scores too."""
    return _Scales(
        query=fields.number("attention_multiplier", 1e-9, 1e9, 1.0),
        embedding=fields.number("embedding_multiplier", 1e-9, 1e9, 1.0),
        residual=fields.number("residual_multiplier", 1e-9, 1e9, 1.0),
        logits=1.0 / fields.number("logits_scaling", 1e-9, 1e9, 1.0),
    )


def _cap(fields: Fields, name: str) -> float | None:
    return None if fields.raw(name) is None else fields.number(name, 1e-6, 1e9)


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if fields.raw("head_dim") is None and hidden % heads:
        raise ConfigError(f"hidden_size is {hidden}; it must be a multiple of num_attention_heads, {heads}.")
    return fields.integer("head_dim", low=2, high=LIMITS["head_dim"], default=hidden // heads)


def _layers(
    fields: Fields, family: Family, ropes: dict[str, RopeConfig], context: int
) -> tuple[tuple[LayerSpec, ...], ExpertConfig | None]:
    count = fields.integer("num_hidden_layers", low=1, high=LIMITS["layers"])
    windows = family.windows(fields, count)
    nope = family.nope(fields, count) if family.nope else [False] * count
    experts, sparse = family.mixture(fields, count) if family.mixture else (None, [False] * count)
    layers = []
    for window, still, mixed in zip(windows, nope, sparse, strict=True):
        rope = ropes["full_attention" if window is None else "sliding_attention"]
        if still:
            rope = RopeConfig(rope.theta, 0)
        layers.append(LayerSpec(window if window is None or window < context else None, rope, mixed))
    return tuple(layers), experts


def _activation(fields: Fields, name: str) -> Activation:
    value = fields.text(name, "gelu_pytorch_tanh" if name == "hidden_activation" else "silu")
    if value not in ACTIVATIONS:
        raise ConfigError(f"{name} {value!r:.80} is not supported. {nearest(value[:40], ACTIVATIONS)}")
    return ACTIVATIONS[value]
