"""The fields of a GGUF architecture's metadata: those that are read, and those that change nothing as they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from thrifty.errors import ConfigError
from thrifty.models.gguf.architectures import Architecture
from thrifty.models.gguf.file import GGUF


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Fields that are read below or change nothing; any other field of the architecture is refused by name.
KNOWN = _names(
    """
    block_count context_length embedding_length feed_forward_length vocab_size attention.head_count
    attention.head_count_kv attention.key_length attention.value_length attention.layer_norm_rms_epsilon
    attention.sliding_window attention.sliding_window_pattern attention.scale attn_logit_softcapping
    final_logit_softcapping rope.dimension_count rope.freq_base rope.freq_base_swa rope.scaling.type
    rope.scaling.factor rope.scaling.attn_factor rope.scaling.original_context_length rope.scaling.finetuned
    rope.scaling.yarn_ext_factor rope.scaling.yarn_attn_factor rope.scaling.yarn_beta_fast
    rope.scaling.yarn_beta_slow rope.scale_linear expert_count expert_used_count expert_feed_forward_length
    expert_shared_feed_forward_length expert_shared_count expert_weights_norm expert_weights_scale
    expert_gating_func attention.layer_norm_epsilon decoder_start_token_id use_parallel_residual
    """
)
# Fields that change nothing at these values, the only ones that are taken. 0 is llama.cpp's "not set".
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.group_norm_groups": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_scale": (0,),
    "embedding_scale": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_scale": (0, 1),
    "expert_group_used_count": (0, 1),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "moe_every_n_layers": (0, 1),
    "n_deepstack_layers": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (0, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "router_logit_softcapping": (0,),
    "tensor_data_layout": ("", "Meta AI original pth"),  # how llama's rows always lie in such a file
}
_DENSE_LAYERS = "leading_dense_block_count"
_SCALES = ("embedding_scale", "residual_scale", "logit_scale")


def check_fields(file: GGUF, kind: Architecture) -> None:
    """Raise ConfigError, naming the field, for one of the architecture's that could change the results."""
    for key, value in file.metadata.items():
        architecture, _, field = key.partition(".")
        known = field in KNOWN or (kind.scales and field in _SCALES)
        known = known or (kind.dense_layers and field == _DENSE_LAYERS)
        if architecture == file.architecture and not known:
            _check_neutral(file, key, NEUTRAL.get(field), value)


def _check_neutral(file: GGUF, key: str, neutral: tuple[object, ...] | None, value: object) -> None:
    if neutral is None:
        raise ConfigError(f"{file.path}: the field '{key[:80]}' is not supported")
    if isinstance(value, np.ndarray | list) or value not in neutral:
        raise ConfigError(
            f"{file.path}: the field '{key}' is {value!r:.40}; only {' or '.join(map(repr, neutral))} is "
            "supported, which changes nothing; use a model that does without it"
        )
