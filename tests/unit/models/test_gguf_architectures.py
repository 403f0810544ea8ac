"""Each GGUF architecture against transformers: a tiny random model, written as llama.cpp's converter would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import gguf_files

from thrifty.errors import ConfigError
from thrifty.models.gguf.source import GGUFSource
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
    "gemma2": (
        "gemma2",
        "Gemma2ForCausalLM",
        {
            "tie_word_embeddings": True,
            "sliding_window": 16,
            "query_pre_attn_scalar": 8,
            "final_logit_softcapping": 6.0,
            "attn_logit_softcapping": 4.0,
        },
        {
            "{arch}.attention.sliding_window": 16,
            "{arch}.final_logit_softcapping": 6.0,
            "{arch}.attn_logit_softcapping": 4.0,
        },
    ),
    "gemma2-softcaps-unsaid": (
        "gemma2",
        "Gemma2ForCausalLM",
        {"tie_word_embeddings": True, "sliding_window": 16, "query_pre_attn_scalar": 8},
        {"{arch}.attention.sliding_window": 16},
    ),
    "phi3": ("phi3", "Phi3ForCausalLM", {"sliding_window": 16}, {"{arch}.attention.sliding_window": 16}),
    "phi3-partial": (
        "phi3",
        "Phi3ForCausalLM",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.75}},
        {"{arch}.rope.dimension_count": 6},
    ),
    "granite": (
        "granite",
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.5,
            "residual_multiplier": 0.25,
            "logits_scaling": 2.0,
            "attention_bias": True,
            "mlp_bias": True,
        },
        {
            "{arch}.embedding_scale": 3.0,
            "{arch}.attention.scale": 0.5,
            "{arch}.residual_scale": 0.25,
            "{arch}.logit_scale": 2.0,
        },
    ),
    "smollm3": ("smollm3", "SmolLM3ForCausalLM", {"tie_word_embeddings": True}, {}),
    "olmo2": ("olmo2", "Olmo2ForCausalLM", {}, {}),
    "starcoder2": (
        "starcoder2",
        "Starcoder2ForCausalLM",
        {"tie_word_embeddings": True},
        {"{arch}.attention.layer_norm_epsilon": 1e-5},
    ),
    "stablelm": (
        "stablelm",
        "StableLmForCausalLM",
        {
            "use_qkv_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
        },
        {
            "{arch}.attention.layer_norm_epsilon": 1e-5,
            "{arch}.rope.dimension_count": 4,
            "{arch}.use_parallel_residual": True,
        },
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
@pytest.mark.long
def test_logits_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    architecture, name, options, fields = CASES[case]
    oracle = made(name, options)
    agree(oracle, write(tmp_path, oracle, architecture, fields, gguf_files.from_transformers(oracle, architecture)))


def test_query_key_and_value_in_one_tensor(tmp_path: Path) -> None:
    oracle = made("LlamaForCausalLM", {})
    tensors = gguf_files.from_transformers(oracle, "llama")
    for index in range(SIZES["num_hidden_layers"]):
        parts = [tensors.pop(f"blk.{index}.attn_{name}.weight") for name in "qkv"]
        tensors[f"blk.{index}.attn_qkv.weight"] = np.concatenate(parts)
    agree(oracle, write(tmp_path, oracle, "llama", {}, tensors))


def test_divisors_of_phi3_beside_no_type_of_scaling(tmp_path: Path) -> None:
    """As its converter writes them; the sequence is longer than the original context."""
    short, long = [1.0, 1.5, 2.0, 2.5], [2.0, 4.0, 6.0, 8.0]
    parameters = {"rope_type": "longrope", "rope_theta": 5000.0, "short_factor": short, "long_factor": long}
    oracle = made("Phi3ForCausalLM", {"rope_parameters": parameters, "original_max_position_embeddings": 32})
    tensors = gguf_files.from_transformers(oracle, "phi3")
    tensors["rope_factors_short.weight"] = np.array(short, np.float32)
    tensors["rope_factors_long.weight"] = np.array(long, np.float32)
    fields = {
        "{arch}.rope.scaling.original_context_length": 32,
        "{arch}.rope.scaling.attn_factor": float(np.sqrt(1 + np.log(4) / np.log(32))),
    }
    agree(oracle, write(tmp_path, oracle, "phi3", fields, tensors))


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("deepseek2", {}, "the architecture 'deepseek2': latent attention .* is not supported: it is not built yet"),
        ("stablelm", {"blk.0.ffn_norm.weight": None}, "attention and MLP side by side .* are not supported"),
        ("stablelm", {"blk.0.attn_q_norm.weight": np.ones(8)}, "a layer norm of each head of query and key"),
    ],
)
def test_what_a_decoder_does_not_do_is_refused(
    tmp_path: Path, architecture: str, changes: dict[str, np.ndarray | None], message: str
) -> None:
    oracle = made("StableLmForCausalLM", {"num_hidden_layers": 1})
    tensors: dict[str, Any] = {**gguf_files.from_transformers(oracle, "stablelm"), **changes}
    tensors = {name: values for name, values in tensors.items() if values is not None}
    fields = {"{arch}.attention.layer_norm_epsilon": 1e-5, "{arch}.block_count": 1}
    with pytest.raises(ConfigError, match=message):
        GGUFSource(write(tmp_path, oracle, architecture, fields, tensors))


def made(name: str, options: dict[str, Any]) -> Any:
    """A tiny random model of transformers."""
    import transformers

    settings = {**SIZES, **options}
    if "rope_parameters" in options:
        settings.pop("rope_theta")
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    oracle = model_class(model_class.config_class(**settings)).eval()
    shake_norms(oracle)
    return oracle


def write(folder: Path, oracle: Any, architecture: str, fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
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
    return gguf_files.write(folder / "m.gguf", architecture, {**common, **fields}, tensors)


def agree(oracle: Any, path: Path) -> None:
    model = assemble(GGUFSource(path), np.dtype(np.float32))
    ids = torch.randint(0, 262, (48,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = oracle(ids[None]).logits[0]
    assert expected.std() > 0.1, "the logits of this model are too small to tell anything"
    assert (build(model).logits(ids) - expected).abs().max() < 1e-4


def shake_norms(model: torch.nn.Module) -> None:
    """Norms and biases start equal for every channel: make a wrong order visible."""
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += torch.randn_like(parameter) * 0.2


def theta(oracle: Any) -> float:
    parameters = oracle.config.rope_parameters
    return float(parameters.get("full_attention", parameters).get("rope_theta", 5000.0))
