"""What transformers calls the tensors of a checkpoint -> the names of decoder parts, for every family."""

from __future__ import annotations

import re

from thrifty.models.config.model_config import ModelConfig
from thrifty.models.config.own import OWN

# Names inside a layer, once prefixes are gone. Mixtral's w1, w2, w3 are gate, down and up.
_ATTENTION = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
    "input_layernorm": "attention_norm",
}
_NORMS = {"post_attention_layernorm": "mlp_norm"}
_POST_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "post_mlp_norm",
}
_MLP = {
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
    "mlp.gate": "mlp.router",
    "block_sparse_moe.gate": "mlp.router",
    "mlp.shared_expert.gate_proj": "mlp.shared.gate",
    "mlp.shared_expert.up_proj": "mlp.shared.up",
    "mlp.shared_expert.down_proj": "mlp.shared.down",
    "mlp.shared_expert_gate": "mlp.shared_gate",
    "mlp.shared_experts.gate_proj": "mlp.shared.gate",
    "mlp.shared_experts.up_proj": "mlp.shared.up",
    "mlp.shared_experts.down_proj": "mlp.shared.down",
}
# Several matrices of a layer in one, row below row.
_JOINED = {
    "self_attn.qkv_proj": ("attention.query", "attention.key", "attention.value"),
    "mlp.gate_up_proj": ("mlp.gate", "mlp.up"),
}
_OUTSIDE = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d{1,4})\.(\w+)")
_EXPERT_PARTS = {
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
}
_LAYER = re.compile(r"layers\.(\d{1,4})\.(.+?)(?:\.(weight|bias))?")
_MODEL = {
    "embed_tokens.weight": "embedding",
    "norm.weight": "final_norm",
    "norm.bias": "final_norm.bias",
    "lm_head.weight": "head",
}
_PREFIX = re.compile(r"^(?:model\.language_model\.|language_model\.model\.|language_model\.|model\.)")


def part_names(tensor: str, dimensions: int, config: ModelConfig) -> tuple[tuple[str, ...], bool]:
    """The decoder parts inside a tensor, in the order of its rows, and whether it holds those of all experts; none
    where the name is unknown.
    """
    if config.family == OWN:
        return (tensor.removesuffix(".weight"),), False
    name = _PREFIX.sub("", tensor)
    if name in _MODEL:
        return (_MODEL[name],), False
    match = _LAYER.fullmatch(name)
    if match is None:
        return (), False
    layer, inner, kind = f"layers.{int(match[1])}.", match[2], match[3]
    if kind is None and dimensions == 3 and config.experts:
        return _fused_names(layer, inner, config.experts.count), True
    if kind is None:
        return (), False
    ending = ".bias" if kind == "bias" else ""
    return tuple(f"{layer}{part}{ending}" for part in _layer_parts(inner, config)), False


def _layer_parts(inner: str, config: ModelConfig) -> tuple[str, ...]:
    if inner in _JOINED:
        return _JOINED[inner]
    expert = _EXPERT.fullmatch(inner)
    if expert is not None and expert[2] in _EXPERT_PARTS:
        return (f"mlp.experts.{_EXPERT_PARTS[expert[2]]}.{int(expert[1])}",)
    norms = _POST_NORMS if config.post_norms else _NORMS
    part = _ATTENTION.get(inner) or norms.get(inner) or _MLP.get(inner)
    return () if part is None else (part,)


def _fused_names(layer: str, inner: str, count: int) -> tuple[str, ...]:
    kinds = {"mlp.experts.gate_up_proj": ("gate", "up"), "mlp.experts.down_proj": ("down",)}.get(inner, ())
    return tuple(f"{layer}mlp.experts.{kind}.{index}" for index in range(count) for kind in kinds)


def llama_name(parameter: str) -> str:
    """What a plain Llama of transformers calls a decoder's parameter, such as `layers.0.mlp.gate.weight`: the inverse
    of what is read here.
    """
    path, _, leaf = parameter.rpartition(".")
    if path in _OUTSIDE:
        return f"{_OUTSIDE[path]}.{leaf}"
    _, layer, part = path.split(".", 2)
    inner = next(name for name, ours in (_ATTENTION | _NORMS | _MLP).items() if ours == part)
    return f"model.layers.{layer}.{inner}.{leaf}"
