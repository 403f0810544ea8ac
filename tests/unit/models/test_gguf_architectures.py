"""Each GGUF architecture against transformers: a tiny random model, written as llama.cpp's converter would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import gguf_files

from thrifty.models.gguf_source import GGUFSource
from thrifty.models.loading import assemble
from thrifty.reference.loading import build

SIZES = {
    "vocab_size": 262,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "rope_theta": 5000.0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", "LlamaForCausalLM", {}, {}),
    "llama-linear": (
        "llama",
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}},
        {"{arch}.rope.scaling.type": "linear", "{arch}.rope.scaling.factor": 2.0},
    ),
    "llama-yarn": (
        "llama",
        "LlamaForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 5000.0,
                "original_max_position_embeddings": 32,
            }
        },
        {
            "{arch}.rope.scaling.type": "yarn",
            "{arch}.rope.scaling.factor": 4.0,
            "{arch}.rope.scaling.original_context_length": 32,
        },
    ),
    "mixtral": (
        "llama",
        "MixtralForCausalLM",
        {"num_local_experts": 4, "num_experts_per_tok": 2},
        {"{arch}.expert_count": 4, "{arch}.expert_used_count": 2},
    ),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", {}, {}),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", {"tie_word_embeddings": True}, {}),
    "gemma3": (
        "gemma3",
        "Gemma3ForCausalLM",
        {"tie_word_embeddings": True, "sliding_window": 16, "query_pre_attn_scalar": 8},
        {"{arch}.attention.sliding_window": 16},
    ),
    "qwen2moe": (
        "qwen2moe",
        "Qwen2MoeForCausalLM",
        {**EXPERTS, "shared_expert_intermediate_size": 40, "norm_topk_prob": False},
        {"{arch}.expert_count": 4, "{arch}.expert_used_count": 2, "{arch}.expert_feed_forward_length": 48},
    ),
    "qwen3moe": (
        "qwen3moe",
        "Qwen3MoeForCausalLM",
        {**EXPERTS, "norm_topk_prob": True},
        {"{arch}.expert_count": 4, "{arch}.expert_used_count": 2, "{arch}.expert_feed_forward_length": 48},
    ),
    "olmoe": (
        "olmoe",
        "OlmoeForCausalLM",
        {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False},
        {"{arch}.expert_count": 4, "{arch}.expert_used_count": 2},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    import transformers

    architecture, name, options, fields = CASES[case]
    settings = {**SIZES, **options}
    if "rope_parameters" in options:
        settings.pop("rope_theta")
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    oracle = model_class(model_class.config_class(**settings)).eval()
    shake_norms(oracle)
    common = {
        "{arch}.block_count": SIZES["num_hidden_layers"],
        "{arch}.context_length": 128,
        "{arch}.embedding_length": 32,
        "{arch}.feed_forward_length": 64,
        "{arch}.attention.head_count": 4,
        "{arch}.attention.head_count_kv": 2,
        "{arch}.attention.key_length": 8,
        "{arch}.attention.value_length": 8,
        "{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        "{arch}.rope.freq_base": theta(oracle),
    }
    tensors = gguf_files.from_transformers(oracle, architecture)
    path = gguf_files.write(tmp_path / "m.gguf", architecture, {**common, **fields}, tensors)
    model = assemble(GGUFSource(path), np.dtype(np.float32))
    ids = torch.randint(0, 262, (48,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = oracle(ids[None]).logits[0]
    assert (build(model).logits(ids) - expected).abs().max() < 1e-4


def shake_norms(model: torch.nn.Module) -> None:
    """Norms and biases start equal for every channel: make a wrong order visible."""
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += torch.randn_like(parameter) * 0.2


def theta(oracle: Any) -> float:
    parameters = oracle.config.rope_parameters
    return float(parameters.get("full_attention", parameters).get("rope_theta", 5000.0))
