"""Every family and every rope scaling against transformers: tiny random checkpoints, fp32, prefill and
decode.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.growing_cache import GrowingCache

from thrifty.models.huggingface.source import HuggingFaceSource
from thrifty.models.loading import assemble
from thrifty.reference.loading import ReferenceModel, build

transformers = pytest.importorskip("transformers", reason="transformers is the oracle (extra 'dev')")

PROMPT, DECODED, TOLERANCE = 48, 32, 1e-4  # beyond 64 tokens, where some ropes change
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "head_dim": 16,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 40}
WINDOW = {"use_sliding_window": True, "sliding_window": 16}
LOCAL_GLOBAL = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied-biased": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("Llama", {"head_dim": 32, "num_key_value_heads": 4}),
    "mistral": ("Mistral", {"sliding_window": 16}),
    "mistral-without-window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {**WINDOW, "max_window_layers": 1}),
    "qwen2-without-window": ("Qwen2", {"sliding_window": 16}),
    "qwen3": ("Qwen3", {"attention_bias": True}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "gemma3": (
        "Gemma3Text",
        {**LOCAL_GLOBAL, "query_pre_attn_scalar": 24, "final_logit_softcapping": 5.0},
    ),
    "gemma2": (
        "Gemma2",
        {
            **LOCAL_GLOBAL,
            "query_pre_attn_scalar": 24,
            "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": 3.0,
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 16}),
    "phi3-partial": ("Phi3", {"rope_parameters": {"rope_theta": 9e3, "partial_rotary_factor": 0.75}}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.3,
            "logits_scaling": 0.25,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "olmo2": ("Olmo2", {}),
    "starcoder2": ("Starcoder2", {"sliding_window": 16}),
    "starcoder2-plain": ("Starcoder2", {"use_bias": False, "tie_word_embeddings": False}),
    "stablelm": ("StableLm", {"use_qkv_bias": True}),
    "stablelm-half": ("StableLm", {"rope_parameters": {"rope_theta": 9e3, "partial_rotary_factor": 0.5}}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}),
    "qwen3-moe": (
        "Qwen3Moe",
        {**EXPERTS, **WINDOW, "num_experts": 5, "norm_topk_prob": True, "mlp_only_layers": [1]},
    ),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "qwen2-moe": (
        "Qwen2Moe",
        {
            **EXPERTS,
            **WINDOW,
            "num_experts": 4,
            "shared_expert_intermediate_size": 56,
            "decoder_sparse_step": 2,
            "max_window_layers": 2,
        },
    ),
}

HALF = 8  # of the rotated dimension
ROPES: dict[str, tuple[dict[str, Any], int]] = {  # parameters, and max_position_embeddings
    "linear": ({"rope_type": "linear", "factor": 3.0}, 256),
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, 64),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        256,
    ),
    "yarn": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
    "yarn-mscale": (
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "mscale": 0.7,
            "mscale_all_dim": 1.2,
            "beta_fast": 8.0,
            "beta_slow": 0.5,
            "truncate": False,
        },
        256,
    ),
    "longrope": (
        {
            "rope_type": "longrope",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "short_factor": [1.0 + 0.05 * i for i in range(HALF)],
            "long_factor": [1.5 + 0.6 * i for i in range(HALF)],
        },
        256,
    ),
}


def oracle(family: str, changes: dict[str, Any], seed: int = 0) -> Any:
    """A transformers model in which every parameter is random, so that none can be forgotten unseen."""
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            base = 1.0 if "norm" in name and not family.startswith("Gemma") else 0.0
            parameter.copy_(base + 0.2 * torch.randn_like(parameter))
    return model


def load_plain(directory: Path) -> ReferenceModel:
    return build(assemble(HuggingFaceSource(directory), np.dtype(np.float32)))


@torch.no_grad()
def compare(model: Any, ours: ReferenceModel, prompt: int = PROMPT) -> None:
    """Whole sequences, and prefill plus teacher-forced decode, must give the same logits."""
    ids = torch.randint(3, ours.config.vocabulary_size, (prompt + DECODED,), generator=torch.Generator().manual_seed(7))
    theirs = copy.deepcopy(model)(ids[None]).logits[0]  # a copy: transformers' dynamic rope remembers lengths
    assert theirs.std() > 0.3, "the logits of this checkpoint are too small to tell anything"
    assert (ours.logits(ids) - theirs).abs().max() < TOLERANCE

    cache, remembered = GrowingCache(ours.config), transformers.DynamicCache(config=model.config)
    for start, stop in [(0, prompt), *((i, i + 1) for i in range(prompt, prompt + DECODED))]:
        step = ids[start:stop]
        expected = model(step[None], past_key_values=remembered, use_cache=True).logits[0]
        logits = ours.decoder(step, torch.arange(start, stop), cache)
        assert (logits - expected).abs().max() < TOLERANCE, f"tokens {start} to {stop}"


@pytest.mark.parametrize("name", FAMILIES)
def test_family_equals_transformers(name: str, tmp_path: Path) -> None:
    model = oracle(*FAMILIES[name])
    model.save_pretrained(tmp_path)
    compare(model, load_plain(tmp_path))


@pytest.mark.parametrize("name", ROPES)
def test_rope_scaling_equals_transformers(name: str, tmp_path: Path) -> None:
    parameters, context = ROPES[name]
    changes = {"rope_parameters": {"rope_theta": 10_000.0, **parameters}, "max_position_embeddings": context}
    model = oracle("Llama", changes)
    model.save_pretrained(tmp_path)
    ours = load_plain(tmp_path)
    compare(model, ours)
    assert ours.config.layers[0].rope.scaling is not None


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_prefill_beyond_the_original_context(name: str, tmp_path: Path) -> None:
    parameters, context = ROPES[name]
    changes = {"rope_parameters": {"rope_theta": 10_000.0, **parameters}, "max_position_embeddings": context}
    model = oracle("Llama", changes)
    model.save_pretrained(tmp_path)
    compare(model, load_plain(tmp_path), prompt=80)


def test_longrope_over_a_part_of_each_head(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0 + 0.05 * i for i in range(6)], "long_factor": [1.5 + 0.6 * i for i in range(6)]}
    parameters = {"rope_type": "longrope", "rope_theta": 9e3, "partial_rotary_factor": 0.75, **factors}
    model = oracle("Phi3", {"rope_parameters": parameters, "original_max_position_embeddings": 64})
    model.save_pretrained(tmp_path)
    compare(model, load_plain(tmp_path), prompt=80)


def test_gemma_scales_only_its_global_layers(tmp_path: Path) -> None:
    parameters = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    }
    model = oracle("Gemma3Text", {**FAMILIES["gemma3"][1], "rope_parameters": parameters})
    model.save_pretrained(tmp_path)
    compare(model, load_plain(tmp_path))


def test_several_shards(tmp_path: Path) -> None:
    model = oracle("Qwen3", {})
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    compare(model, load_plain(tmp_path))


@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe"])
def test_experts_in_fused_tensors(family: str, tmp_path: Path) -> None:
    model = oracle(*FAMILIES[family])
    model.save_pretrained(tmp_path, save_original_format=False)
    names = HuggingFaceSource(tmp_path).entries
    assert any(name.endswith("experts.gate_up_proj") for name in names)
    compare(model, load_plain(tmp_path))


def test_gemma_with_vision_gives_its_language_model(tmp_path: Path) -> None:
    text = transformers.Gemma3TextConfig(**{**SIZES, **FAMILIES["gemma3"][1], "final_logit_softcapping": None})
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    ours = load_plain(tmp_path)
    ids = torch.arange(3, 60)
    with torch.no_grad():
        theirs = model(ids[None]).logits[0]
    assert (ours.logits(ids) - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_keep_their_values(dtype: torch.dtype, tmp_path: Path) -> None:
    model = oracle("Llama", {})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    copy.deepcopy(model).to(dtype).save_pretrained(tmp_path)
    assert {entry.dtype for entry in HuggingFaceSource(tmp_path).entries.values()} <= {"BF16", "F16"}
    compare(model, load_plain(tmp_path))


def test_packed_weights_stay_near(tmp_path: Path) -> None:
    model = oracle("Llama", {})
    model.save_pretrained(tmp_path)
    packed = assemble(HuggingFaceSource(tmp_path))
    formats = {report.format for report in packed.report}
    assert formats == {"bf16", "f32"}
    assert 0 < max(report.error for report in packed.report) < 2**-8
    ids = torch.arange(3, 60)
    with torch.no_grad():
        theirs = model(ids[None]).logits[0]
    assert (build(packed).logits(ids) - theirs).abs().max() < 0.1 * theirs.abs().max()


def test_rope_of_old_files_equals_the_new_spelling(tmp_path: Path) -> None:
    parameters, context = ROPES["yarn"]
    changes = {"rope_parameters": {"rope_theta": 7_000.0, **parameters}, "max_position_embeddings": context}
    oracle("Llama", changes).save_pretrained(tmp_path)
    new = HuggingFaceSource(tmp_path).config
    data = json.loads((tmp_path / "config.json").read_text())
    rope = data.pop("rope_parameters")
    data["rope_theta"] = rope.pop("rope_theta")
    data["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert HuggingFaceSource(tmp_path).config == new
