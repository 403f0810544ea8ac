"""What the checkpoints of each `model_type` of transformers read from `config.json`, and how they differ, as data.

The reference for every default and rule is the `transformers` library, version 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from thrifty.errors import ConfigError
from thrifty.models.config.fields import Fields
from thrifty.models.config.model_config import LIMITS, MLP, ExpertConfig, Norm, QKNorm
from thrifty.models.config.rope import LAYER_TYPES

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
        enabled = fields.flag("use_sliding_window", default=fields.data.get("model_type") in ("gemma2", "gemma3_text"))
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


def _even_layers(fields: Fields, index: int) -> bool:
    return index % 2 == 0


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


def _chosen_qkv_biases(fields: Fields) -> tuple[bool, bool, bool]:
    return fields.flag("use_qkv_bias"), False, False


def _chosen_biases(fields: Fields) -> tuple[bool, bool, bool]:
    bias = fields.flag("use_bias", default=True)
    return bias, bias, bias


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


def _deepseek_experts(fields: Fields, layers: int) -> tuple[ExpertConfig, list[bool]]:
    """Experts in every `moe_layer_freq`-th layer behind the first `first_k_dense_replace`. What it calls several shared
    experts is one of all their neurons.
    """
    dense = fields.integer("first_k_dense_replace", high=LIMITS["layers"], default=0)
    step = fields.integer("moe_layer_freq", low=1, high=LIMITS["layers"], default=1)
    scoring = fields.text("scoring_func", "softmax")
    if scoring != "softmax":
        raise ConfigError(f"scoring_func is {scoring!r:.80}; only 'softmax' is supported: use another checkpoint.")
    limit, size = LIMITS["experts.count"], "moe_intermediate_size"
    inner = fields.integer(size, low=1, high=LIMITS["intermediate_size"])
    experts = ExpertConfig(
        count=fields.integer("n_routed_experts", low=1, high=limit),
        active=fields.integer("num_experts_per_tok", low=1, high=limit),
        intermediate_size=inner,
        normalise_probabilities=fields.flag("norm_topk_prob"),
        shared_intermediate_size=inner * fields.integer("n_shared_experts", high=limit, default=0),
    )
    return experts, [index >= dense and index % step == 0 for index in range(layers)]


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

    `windows`, `biases`, `mixture` and `nope` read fields; `defaults` are values for absent ones. `epsilon` is the
    field of the norms' epsilon. `rotated`: the share of a head's channels that turn where the file names none; None:
    they all do. `multipliers`: Granite's, of embedding, attention scores, residual branches and logits. `masks`:
    whether it fills in masks, of the id `mask_token_id`, and its rows see both ways.
    """

    windows: Windows = _no_windows
    biases: Biases = _no_biases
    mixture: Mixture | None = None
    nope: Callable[[Fields, int], list[bool]] | None = None
    qk_norm: QKNorm = "none"
    norm: Norm = "rms"
    epsilon: str = "rms_norm_eps"
    pre_norms: bool = True
    post_norms: bool = False
    mlp: MLP = "gated"
    rotated: float | None = None
    multipliers: bool = False
    masks: bool = False
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

# Fields of phi3's own code, beside the numbers that transformers' class of the same name reads.
_PHI3_FIELDS = ("auto_map", "full_attn_mod", "interpolate_factor")
# Its checkpoints bring their own code, which computes as the decoder here; the others are of training.
_DEEPSEEK_FIELDS = ("auto_map", "seq_aux")
# Fields of Dream's own code; its attention sees both ways, whatever these say.
_DREAM_FIELDS = ("auto_map", "max_window_layers", "sliding_window", "use_mrope", "use_sliding_window")
_STARCODER2_FIELDS = ("activation_function", "mlp_type", "norm_type", "scale_attn_weights")

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
        post_norms=True,
        defaults=_GEMMA_SIZES,
    ),
    "gemma2": Family(
        windows=_by_type(_even_layers),
        biases=_attention_biases,
        tied=True,
        gemma=True,
        post_norms=True,
        defaults={
            **_GEMMA_SIZES,
            "vocab_size": 256_000,
            "max_position_embeddings": 8192,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
        },
    ),
    "phi3": Family(
        windows=_everywhere(None),
        rotated=1.0,
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
        ignored=_PHI3_FIELDS,
    ),
    "granite": Family(biases=_all_biases, multipliers=True),
    "olmo2": Family(
        biases=_attention_biases, qk_norm="full", pre_norms=False, post_norms=True, defaults={"rms_norm_eps": 1e-5}
    ),
    "starcoder2": Family(
        windows=_everywhere(None),
        biases=_chosen_biases,
        norm="layer",
        epsilon="norm_epsilon",
        mlp="plain",
        tied=True,
        defaults={"norm_epsilon": 1e-5, "hidden_act": "gelu_pytorch_tanh"},
        ignored=_STARCODER2_FIELDS,
    ),
    "stablelm": Family(
        biases=_chosen_qkv_biases,
        norm="layer",
        epsilon="layer_norm_eps",
        rotated=0.25,
        defaults={"layer_norm_eps": 1e-5},
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
    "deepseek": Family(biases=_attention_biases, mixture=_deepseek_experts, ignored=_DEEPSEEK_FIELDS),
    "Dream": Family(biases=_qkv_biases, masks=True, ignored=_DREAM_FIELDS),
    "qwen2_moe": Family(windows=_by_type(_lower_even_layers), biases=_qkv_biases, mixture=_qwen_experts),
}
