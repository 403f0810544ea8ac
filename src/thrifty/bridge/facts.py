"""What the cache must know of a model of the transformers library, from its config and its attention modules."""

from __future__ import annotations

from typing import Any

from thrifty.cache.model_info import ModelInfo
from thrifty.errors import ConfigError

ROWS = 1 << 20
"""Rows that are appended at once: a forward pass brings a whole prompt to a layer."""


def text_config(model: Any) -> Any:
    """The config of a model's decoder. Raises ConfigError for a model that the bridge does not take."""
    if not hasattr(model, "config") or not hasattr(model.config, "get_text_config"):
        raise ConfigError(f"{type(model).__name__} is no model of the transformers library; give a PreTrainedModel")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ConfigError(f"{type(model).__name__} has an encoder, whose cache Thrifty does not hold; use a decoder")
    return model.config.get_text_config(decoder=True)


def model_info(model: Any) -> ModelInfo:
    """Sizes, windows and scale. Raises ConfigError naming what the cache cannot hold."""
    config = text_config(model)
    modules = attention_modules(model)
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    kv_heads = kv_heads or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    scales = {float(module.scaling) for module in modules}
    if len(scales) != 1:
        raise ConfigError(f"the model's layers scale their scores by {sorted(scales)}; the cache takes one scale")
    kinds = {str(parameter.dtype) for parameter in model.parameters() if parameter.is_floating_point()}
    return ModelInfo(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        windows=_windows(config, len(modules)),
        scale=scales.pop(),
        softcap=getattr(config, "attn_logit_softcapping", None),
        format="bf16" if kinds == {"torch.bfloat16"} else "f32",
        chunk=ROWS,
        context=getattr(config, "max_position_embeddings", 0) or 0,
    )


def attention_modules(model: Any) -> list[Any]:
    """The decoder's attention modules by layer. Raises ConfigError where a layer has none, or two."""
    config = text_config(model)
    found: dict[int, Any] = {}
    for name, module in model.named_modules():
        if not (hasattr(module, "layer_idx") and hasattr(module, "scaling") and hasattr(module, "q_proj")):
            continue
        if module.layer_idx in found:
            raise ConfigError(f"layer {module.layer_idx} attends twice ({name}); the cache holds one attention a layer")
        found[module.layer_idx] = module
    layers = list(range(config.num_hidden_layers))
    if sorted(found) != layers:
        missing = [layer for layer in layers if layer not in found]
        raise ConfigError(
            f"{type(model).__name__}: layers {missing or sorted(found)} have no attention of the usual form (q_proj, "
            "k_proj, v_proj and a scale); the cache holds that alone"
        )
    return [found[layer] for layer in layers]


def _windows(config: Any, layers: int) -> tuple[int | None, ...]:
    """Each layer's window. Raises ConfigError for a layer that is neither global nor windowed."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds is None:
        used = window if getattr(config, "use_sliding_window", True) else None
        return (used,) * layers
    wrong = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
    if wrong:
        raise ConfigError(f"layer_types has '{wrong[0]}'; the cache holds full_attention and sliding_attention")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
