"""DeepSeek-MoE (the first version, without latent attention): its config, and its logits in both kinds of files.

transformers has no class of its own for it. A Qwen2-MoE whose shared experts' gates are zero computes the same, but for
a half of what the shared expert gives.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tests import gguf_files

from thrifty.errors import ConfigError
from thrifty.models.config.huggingface import from_huggingface
from thrifty.models.config.model_config import ExpertConfig
from thrifty.models.gguf.source import GGUFSource
from thrifty.models.huggingface.source import HuggingFaceSource
from thrifty.models.loading import assemble
from thrifty.models.source import Source
from thrifty.reference.loading import build

# As deepseek-moe-16b-base has them, with other sizes.
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekConfig"},
    "model_type": "deepseek",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "moe_intermediate_size": 24,
    "moe_layer_freq": 1,
    "n_routed_experts": 5,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 5000.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "vocab_size": 262,
}
GGUF_FIELDS = {
    "{arch}.block_count": 3,
    "{arch}.context_length": 128,
    "{arch}.embedding_length": 32,
    "{arch}.feed_forward_length": 64,
    "{arch}.attention.head_count": 4,
    "{arch}.attention.head_count_kv": 2,
    "{arch}.attention.layer_norm_rms_epsilon": 1e-5,
    "{arch}.rope.freq_base": 5000.0,
    "{arch}.leading_dense_block_count": 1,
    "{arch}.expert_count": 5,
    "{arch}.expert_used_count": 2,
    "{arch}.expert_shared_count": 2,
    "{arch}.expert_feed_forward_length": 24,
    "{arch}.expert_weights_scale": 1.0,
}


def test_the_config_is_read() -> None:
    config = from_huggingface(CONFIG)
    assert [layer.experts for layer in config.layers] == [False, True, True]
    assert config.experts == ExpertConfig(5, 2, 24, False, shared_intermediate_size=48)
    every_second = from_huggingface(CONFIG | {"moe_layer_freq": 2, "first_k_dense_replace": 0, "norm_topk_prob": True})
    assert [layer.experts for layer in every_second.layers] == [True, False, True]
    assert every_second.experts is not None and every_second.experts.normalise_probabilities
    alone = from_huggingface(CONFIG | {"n_shared_experts": None}).experts
    assert alone is not None and alone.shared_intermediate_size == 0


@pytest.mark.parametrize(("changes", "message"), [
    ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'; only 'softmax' is supported"),
    ({"n_routed_experts": None}, "n_routed_experts is missing"),
    ({"num_experts_per_tok": 6}, "num_experts_per_tok is 6"),
])  # fmt: skip
def test_what_it_cannot_be_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_huggingface(CONFIG | changes)


@pytest.mark.long
def test_logits_of_safetensors_are_those_of_transformers(tmp_path: Path) -> None:
    oracle = made()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(deepseek_tensors(oracle), tmp_path / "model.safetensors")
    agree(oracle, HuggingFaceSource(tmp_path))


@pytest.mark.long
def test_logits_of_gguf_are_those_of_transformers(tmp_path: Path) -> None:
    oracle = made()
    tensors = gguf_files.from_transformers(oracle, "deepseek")
    for name in [name for name in tensors if name.endswith("ffn_gate_inp_shexp.weight")]:
        del tensors[name]
        down = name.replace("gate_inp_shexp", "down_shexp")
        tensors[down] = tensors[down] / 2
    agree(oracle, GGUFSource(gguf_files.write(tmp_path / "m.gguf", "deepseek", GGUF_FIELDS, tensors)))


def made() -> Any:
    """The tiny oracle: every parameter is random, but for the gates of shared experts."""
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle (extra 'dev')")
    same = ("hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads", "num_experts_per_tok",
            "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_theta", "vocab_size")  # fmt: skip
    config = transformers.Qwen2MoeConfig(
        **{name: CONFIG[name] for name in same}, num_experts=5, shared_expert_intermediate_size=48,
        norm_topk_prob=False, mlp_only_layers=[0], qkv_bias=False, max_position_embeddings=128,
        tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    oracle = transformers.Qwen2MoeForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            spread = 0.0 if "shared_expert_gate" in name else 0.2
            parameter.copy_(float("norm" in name) + spread * torch.randn_like(parameter))
    return oracle


def deepseek_tensors(oracle: Any) -> dict[str, np.ndarray]:
    """Its parameters under the names of a DeepSeek checkpoint, an expert a tensor."""
    tensors: dict[str, np.ndarray] = {}
    for name, value in oracle.state_dict().items():
        values = value.float().numpy()
        path, _, _ = name.partition(".experts.")
        if name.endswith(".experts.gate_up_proj"):
            half = values.shape[1] // 2
            for expert, own in enumerate(values):
                tensors[f"{path}.experts.{expert}.gate_proj.weight"] = own[:half].copy()
                tensors[f"{path}.experts.{expert}.up_proj.weight"] = own[half:].copy()
        elif name.endswith(".experts.down_proj"):
            for expert, own in enumerate(values):
                tensors[f"{path}.experts.{expert}.down_proj.weight"] = own.copy()
        elif "shared_expert_gate" not in name:
            factor = 0.5 if ".shared_expert.down_proj" in name else 1.0
            tensors[name.replace(".shared_expert.", ".shared_experts.")] = values * np.float32(factor)
    return tensors


def agree(oracle: Any, source: Source) -> None:
    ids = torch.randint(0, 262, (48,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = oracle(ids[None]).logits[0]
    assert expected.std() > 0.1, "the logits of this model are too small to tell anything"
    model = assemble(source, np.dtype(np.float32))
    assert [layer.experts for layer in model.config.layers] == [False, True, True]
    assert (build(model).logits(ids) - expected).abs().max() < 1e-4
