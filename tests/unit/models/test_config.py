"""Configs: what is read, what is refused and by which name, and that hostile numbers stay harmless."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzzing import examples

from thrifty.errors import ConfigError
from thrifty.models.config.huggingface import FAMILIES, from_huggingface
from thrifty.models.config.model_config import ModelConfig, as_dict, from_dict

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}
GEMMA = {
    **LLAMA,
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 32,
    "sliding_window": 16,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
GEMMA.pop("hidden_act")
MOE = {
    **LLAMA,
    "model_type": "qwen2_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 48,
}


def changed(base: dict[str, Any] = LLAMA, **changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(base), **changes}


def refused(data: object) -> str:
    with pytest.raises(ConfigError) as error:
        from_huggingface(data)
    return str(error.value)


def test_llama() -> None:
    config = from_huggingface(LLAMA)
    assert (config.head_dim, config.kv_heads, config.context_length) == (16, 2, 256)
    assert config.query_scale == 0.25
    assert config.eos_ids == (2, 3)
    assert config.bos_ids == (1,)
    assert not config.tied_embeddings


def test_gemma_layers() -> None:
    config = from_huggingface(changed(GEMMA, num_hidden_layers=7, rope_scaling={"rope_type": "linear", "factor": 8.0}))
    assert [layer.window for layer in config.layers] == [16] * 5 + [None, 16]
    local, whole = config.layers[0].rope, config.layers[5].rope
    assert (local.theta, local.scaling) == (10_000.0, None)
    assert whole.theta == 1_000_000.0
    assert whole.scaling is not None and whole.scaling.factor == 8.0
    assert (config.norm_offset, config.embedding_scale, config.query_scale) == (1.0, 8.0, 1 / 16)
    assert config.tied_embeddings


def test_rope_by_layer_type() -> None:
    parameters = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 123.0},
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 456.0},
    }
    config = from_huggingface(changed(GEMMA, num_hidden_layers=6, rope_parameters=parameters))
    assert config.layers[0].rope.theta == 123.0
    assert config.layers[5].rope.theta == 456.0


def test_a_window_as_long_as_the_context_is_no_window() -> None:
    assert from_huggingface(changed(model_type="mistral", sliding_window=256)).layers[0].window is None
    assert from_huggingface(changed(model_type="mistral", sliding_window=255)).layers[0].window == 255


def windows(data: dict[str, Any]) -> list[int | None]:
    return [layer.window for layer in from_huggingface(data).layers]


def test_windows_of_files_without_layer_types() -> None:
    """Older files leave the rule to the family; these are transformers' rules."""
    sliding = {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}
    for family in ("qwen2", "qwen3"):
        assert windows(changed(model_type=family, **sliding)) == [None, None, 16, 16]
    assert windows(changed(MOE, **{**sliding, "max_window_layers": 3})) == [16, None, 16, None]
    assert windows(changed(MOE, **{**sliding, "use_sliding_window": False})) == [None] * 4
    qwen3_moe = {**changed(MOE, **sliding), "model_type": "qwen3_moe"}
    del qwen3_moe["shared_expert_intermediate_size"]
    assert windows(qwen3_moe) == [16] * 4
    assert windows(changed(GEMMA, num_hidden_layers=3, sliding_window_pattern=2)) == [16, None, 16]


def test_yarn_without_an_original_context_takes_the_configs() -> None:
    rope = from_huggingface(changed(rope_scaling={"type": "yarn", "factor": 4.0})).layers[0].rope.scaling
    assert rope is not None
    assert rope.original_context == 256


def test_stretched_contexts() -> None:
    dynamic = changed(rope_scaling={"type": "dynamic", "factor": 4.0})
    assert from_huggingface(dynamic).context_length == 1024
    yarn = changed(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256})
    assert from_huggingface(yarn).context_length == 1024
    linear = changed(rope_scaling={"type": "linear", "factor": 4.0})
    assert from_huggingface(linear).context_length == 256


def test_longrope_takes_the_original_context_beside_the_table() -> None:
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = from_huggingface(changed(rope_scaling=scaling, original_max_position_embeddings=64))
    rope = config.layers[0].rope.scaling
    assert rope is not None
    assert (rope.original_context, rope.factor) == (64, 4.0)


def test_a_dictionary_and_back() -> None:
    scaling = {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    for data in (changed(rope_scaling=scaling), GEMMA, MOE):
        config = from_huggingface(data)
        assert from_dict(as_dict(config)) == config


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "lama"}, "Did you mean 'llama'"),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "kv_lora_rank is set; latent attention"),
        ({"kv_lora_rank": 512}, "kv_lora_rank is 512: latent attention"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_scaling.rope_type 'su' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "alpha": 3.0}}, "rope_scaling.alpha is 3.0"),
        ({"rope_scaling": {"type": "default", "mrope_section": [1]}}, "rope_scaling.mrope_section is [1]"),
        ({"rope_scaling": [1]}, "rope_scaling is not a table"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5: rotating a part"),
        ({"hidden_act": "relu2"}, "hidden_act 'relu2' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"alibi": True}, "alibi is True: ALiBi"),
        ({"quantization_config": {"quant_method": "gptq"}}, "merged back into full precision, remove the field"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map is"),
        (
            {"rope_interleaved": True},
            "True: this field is not known for llama and could change the results; remove it from config.json where",
        ),
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers is 1"),
        ({"num_experts": 4, "num_local_experts": 4}, "num_experts is 4"),
        ({"num_experts_per_token": 2}, "num_experts_per_token is 2"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types is ['sliding_attention'"),
        ({"norm_eps": 1e-3}, "norm_eps is 0.001"),
        ({"rotary_pct": 0.25}, "rotary_pct is 0.25"),
        ({"norm_type": "layer_norm"}, "norm_type is 'layer_norm'"),
        ({"use_rope": False}, "use_rope is False"),
        ({"use_rope_scaling_fast": True}, "use_rope_scaling_fast is True"),
        ({"quantization": {"bits": 4}}, "quantization is {'bits': 4}: use the unquantised checkpoint, or a GGUF file"),
        ({"is_causal": False}, "is_causal is False"),
        ({"logit_scale": 0.5}, "logit_scale is 0.5"),
        ({"residual_multiplier": 0}, "residual_multiplier is 0"),
        ({"sliding_window": 16}, "sliding_window is 16"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": 64.5}, "hidden_size is 64.5"),
        ({"hidden_size": 10**30}, "hidden_size is an integer beyond 64 bits"),
        ({"hidden_size": 66}, "hidden_size is 66; it must be a multiple of num_attention_heads, 4"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; it must be an integer"),
        ({"num_key_value_heads": 3}, "heads is 4; it must be a multiple of kv_heads, 3"),
        ({"head_dim": 15}, "15; it must be even"),
        ({"vocab_size": 1 << 40}, "vocab_size is 1099511627776"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'"),
        ({"eos_token_id": [2, -1]}, "eos_token_id is -1"),
    ],
)
def test_refused_by_name(change: dict[str, Any], expected: str) -> None:
    assert expected in refused(changed(**change))


@pytest.mark.parametrize(
    ("base", "change", "expected"),
    [
        (GEMMA, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0: soft-capped attention"),
        (GEMMA, {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (GEMMA, {"layer_types": ["linear_attention"] * 3}, "layer_types.0 is 'linear_attention'"),
        (GEMMA, {"layer_types": ["full_attention"]}, "layer_types must be a list with one entry"),
        (MOE, {"num_experts_per_tok": 5}, "num_experts_per_tok is 5; it must be an integer from 1 to 4"),
        (MOE, {"num_experts": 10**6}, "num_experts is 1000000"),
        (MOE, {"mlp_only_layers": [-1]}, "mlp_only_layers is -1"),
        (MOE, {"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ({**MOE, "model_type": "olmoe"}, {"clip_qkv": 8.0}, "moe_intermediate_size is 40"),
    ],
)
def test_refused_in_other_families(base: dict[str, Any], change: dict[str, Any], expected: str) -> None:
    assert expected in refused(changed(base, **change))


def test_clipped_projections_are_refused() -> None:
    olmoe = changed(model_type="olmoe", num_experts=4, num_experts_per_tok=2, clip_qkv=8.0)
    assert "clip_qkv is 8.0: clipped queries" in refused(olmoe)


DECORATION: list[dict[str, Any]] = [
    # what libraries write for themselves
    {"_attn_implementation_autoset": True, "_attn_implementation_internal": "eager", "attn_implementation": "sdpa"},
    {"_flash_attn_2_enabled": True, "use_flash_attn": True, "use_fused_rms_norm": True, "_commit_hash": "abc"},
    {"unsloth_fixed": True, "unsloth_version": "2025.1", "unsloth_training_args": {"r": 16}, "_unsloth_note": "x"},
    {"use_cache": True, "is_decoder": True, "torchscript": True, "is_llama_config": True, "tp_plan": {"a": "b"}},
    {"attention_softmax_in_fp32": True, "pretraining_tp": 2, "tensor_parallel": 2, "base_model_tp_plan": {"a": "b"}},
    # the tokenizer, and lengths of training
    {"model_max_length": 2048, "max_sequence_length": 2048, "seq_length": 4096, "max_seq_len": 8, "n_ctx": 512},
    {"tokenizer_padding_side": "right", "tokenizer_model_max_length": 2048, "padding_side": "left"},
    {"unk_token_id": 0, "mask_token_id": 9, "image_token_index": 7, "cls_token_id": 3, "eos_token": "</s>"},
    {"original_vocab_size": 90, "pad_vocab_size_multiple_of": 64},
    # training
    {"gradient_checkpointing": True, "resid_dropout": 0.1, "ffn_dropout_rate": 0.1, "layerdrop": 0.2, "dropout": 0.1},
    {"router_z_loss_coef": 0.01, "loss_type": "ForCausalLM", "initializer_factor": 1.0, "embedding_init_std": 0.02},
    {"trl_version": "0.1", "axolotl_version": "0.9", "load_in_8bit": True, "bf16": True, "seed": 42},
    {"neftune_noise_alpha": 5, "lora_alpha": 16, "lora_r": 8, "train_batch_size": 4, "num_train_epochs": 3},
    {"optimizer": "adamw", "lr": 1e-4, "warmup_steps": 9, "ddp_timeout": 1800, "eval_loss": 1.2, "max_steps": 10},
    {"merge_method": "slerp", "tensor_parallel_degree": 4, "virtual_pp_degree": 1, "sequence_parallel": True},
    {"trust_remote_code": True, "inference_mode": True, "framework": "pt", "ignore_index": -100},
    {"chat_format": "chatml", "system_prompt": "Be brief.", "softmax_in_fp32": True, "cache_dtype": "auto"},
    # description and generation
    {"license": "mit", "tags": ["x"], "language": ["en"], "base_model": "a/b", "datasets": ["d"], "author": "me"},
    {"summary_type": "cls_index", "classifier_bias": True, "num_labels": 2, "keys_to_ignore_at_inference": ["x"]},
    {"max_new_tokens": 5, "min_p": 0.1, "stop_strings": ["x"], "guidance_scale": 2.0, "generation_config": {"a": 1}},
    # values at which a field changes nothing
    {"num_nextn_predict_layers": 0, "num_mtp_layers": 0, "n_shared_experts": 0, "first_k_dense_replace": 0},
    {"rope_interleaved": False, "whatever": None, "sliding_window": None, "qk_layernorm": False, "clip_qkv": None},
    {"partial_rotary_factor": 1.0, "rotary_pct": 1, "logits_scaling": 1.0, "residual_multiplier": 1.0},
    {"is_causal": True, "use_rope": True, "norm_type": "RMSNorm", "position_embedding_type": "rope"},
    {"sliding_window": 256, "max_window_layers": 2},
    {"sliding_window": 16, "use_sliding_window": False, "max_window_layers": 2},
    {"layer_types": ["full_attention"] * 3, "num_key_value_groups": 2, "n_head": 4, "norm_eps": 1e-5},
    {"rope_scaling": {"rope_type": "default", "factor": 1.0, "original_max_position_embeddings": 256}},
    {"kv_channels": 16, "rotary_embedding_base": LLAMA["rope_theta"], "activation": "silu", "rope_pct": 1.0},
    {"rope_ratio": 1, "use_rmsnorm": True, "no_bias": True, "hidden_size_per_layer_input": 0},
    {"kv_lora_rank": 0, "attn_logit_softcapping": 0.0, "quantization_config": {}, "auto_map": None},
]


@pytest.mark.parametrize("fields", DECORATION, ids=lambda fields: next(iter(fields)))
def test_fields_without_effect_are_accepted(fields: dict[str, Any]) -> None:
    assert from_huggingface(changed(**fields)) == from_huggingface(LLAMA)


@pytest.mark.parametrize(
    "fields",
    [
        {"kv_channels": 24},
        {"rotary_embedding_base": 5.0},
        {"activation": "relu"},
        {"rope_pct": 0.5},
        {"rope_ratio": 4},
        {"use_rmsnorm": False},
        {"no_bias": False},
        {"hidden_size_per_layer_input": 256},
        {"q_lora_rank": 8},
        {"kv_lora_rank": 8},
    ],
    ids=str,
)
def test_the_same_fields_at_other_values_are_refused(fields: dict[str, Any]) -> None:
    assert next(reversed(fields)) in refused(changed(**fields))


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
WITHOUT_EPSILON = {name: value for name, value in LLAMA.items() if name != "rms_norm_eps"}
SIZES: dict[str, dict[str, Any]] = {
    "Dream": LLAMA | {"mask_token_id": 5},
    "stablelm": WITHOUT_EPSILON,
    "starcoder2": WITHOUT_EPSILON,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "mixtral": LLAMA | EXPERTS,
    "olmoe": LLAMA | EXPERTS,
    "deepseek": LLAMA | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40},
    "qwen2_moe": MOE,
    "qwen3_moe": LLAMA | EXPERTS | {"moe_intermediate_size": 40},
}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_libraries_write_into_any_family_changes_nothing(name: str) -> None:
    data = changed(SIZES.get(name, LLAMA), model_type=name)
    written = {
        "_attn_implementation_autoset": True,
        "unsloth_fixed": True,
        "model_max_length": 9,
        "torch_dtype": "bf16",
    }
    assert from_huggingface(data | written) == from_huggingface(data)


PUBLISHED = {  # what the families' own configs have beside the numbers
    "starcoder2": {
        "activation_function": "gelu",
        "attention_softmax_in_fp32": True,
        "embedding_dropout": 0.1,
        "mlp_type": "default",
        "norm_type": "layer_norm",
        "scale_attention_softmax_in_fp32": True,
        "scale_attn_weights": True,
        "use_bias": True,
    },
    "phi3": {
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "embd_pdrop": 0.0,
        "full_attn_mod": 1,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "mlp_bias": False,
        "resid_pdrop": 0.0,
        "rope_scaling": None,
        "sliding_window": 262144,
    },
    "stablelm": {"hidden_dropout": 0.0, "qk_layernorm": False, "use_parallel_residual": False, "use_qkv_bias": False},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_configs_have_beside_the_numbers(name: str) -> None:
    data = changed(SIZES.get(name, LLAMA), model_type=name)
    assert from_huggingface(data | PUBLISHED[name]) == from_huggingface(data)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("qk_layernorm", "qk_layernorm is True: a layer norm of each head of query and key"),
        ("use_parallel_residual", "use_parallel_residual is True: attention and MLP side by side"),
    ],
)
def test_variants_of_stablelm_are_refused_by_name(field: str, message: str) -> None:
    assert message in refused(changed(WITHOUT_EPSILON, model_type="stablelm", **{field: True}))


def test_latent_attention_is_refused_by_name() -> None:
    assert "kv_lora_rank is set; latent attention" in refused(changed(model_type="deepseek_v2", kv_lora_rank=512))


def test_the_plain_mlp_takes_no_experts() -> None:
    data = as_dict(from_huggingface(changed(WITHOUT_EPSILON, model_type="starcoder2")))
    assert (data["norm"], data["mlp"]) == ("layer", "plain")
    experts = {"count": 2, "active": 1, "intermediate_size": 8, "normalise_probabilities": True}
    with pytest.raises(ConfigError, match="mlp is plain; experts are gated"):
        from_dict({**data, "experts": experts})
    with pytest.raises(ConfigError, match="norm is 'batch'; it must be one of: rms, layer"):
        from_dict({**data, "norm": "batch"})


def test_a_token_of_minus_one_is_none() -> None:
    config = from_huggingface(changed(bos_token_id=-1, eos_token_id=-1, pad_token_id=-1))
    assert (config.bos_ids, config.eos_ids) == ((), ())


@pytest.mark.parametrize("data", [None, [], "llama", 3, {}])
def test_not_a_config(data: object) -> None:
    assert refused(data)


def test_from_dict_names_what_is_wrong() -> None:
    data = as_dict(from_huggingface(LLAMA))
    with pytest.raises(ConfigError, match="layers is missing"):
        from_dict({})
    with pytest.raises(ConfigError, match=r"config\.colour is not a field"):
        from_dict({**data, "colour": 1})
    with pytest.raises(ConfigError, match=r"layers\.0 is not a table"):
        from_dict({**data, "layers": [3]})
    with pytest.raises(ConfigError, match="hidden_size"):
        from_dict({key: value for key, value in data.items() if key != "hidden_size"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
EXTREME = st.sampled_from([0, -1, 1, 2**31, 2**63, 10**40, 0.0, -0.5, 1e308, float("nan"), "", [], {}])
SCALING = """rope_type type factor short_factor long_factor original_max_position_embeddings low_freq_factor
    high_freq_factor beta_fast mscale attention_factor rope_theta"""
FIELDS = {*MOE, *GEMMA, "layer_types", "no_rope_layers", "text_config", "mlp_only_layers", "rope_parameters"}
FIELDS |= {"decoder_sparse_step", "max_window_layers", "use_sliding_window", "rope_scaling"}
KINDS = st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn", "longrope", "?"])


@settings(max_examples=examples(600), deadline=None)
@given(
    family=st.sampled_from([*FAMILIES, "gemma3", "?"]),
    fields=st.dictionaries(st.sampled_from(sorted(FIELDS)), JSON | EXTREME, max_size=4),
    scaling=st.none() | st.dictionaries(st.sampled_from(SCALING.split()), JSON | EXTREME | KINDS, max_size=6),
)
def test_hostile_values_give_a_config_or_an_error(
    family: str, fields: dict[str, Any], scaling: dict[str, Any] | None
) -> None:
    data = changed(MOE, model_type=family, rope_scaling=scaling) | fields
    try:
        config = from_huggingface(data)
    except ConfigError as error:
        assert str(error)
    else:
        assert isinstance(config, ModelConfig)
        assert len(config.layers) <= 1024


WHOLE = ("vocab_size", "hidden_size", "max_position_embeddings", "num_attention_heads", "bos_token_id")


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_number_may_be_written_as_a_float(name: str) -> None:
    config = from_huggingface(changed(**{name: float(LLAMA[name])}))
    assert config == from_huggingface(LLAMA)
    assert as_dict(config) == as_dict(from_huggingface(LLAMA)), "and is an integer from there on"


def test_whole_numbers_in_lists_and_tables_may_be_floats() -> None:
    assert from_huggingface(changed(eos_token_id=[2.0, 3.0])) == from_huggingface(LLAMA)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    as_float = {**scaling, "original_max_position_embeddings": 64.0}
    assert from_huggingface(changed(rope_scaling=as_float)) == from_huggingface(changed(rope_scaling=scaling))


@pytest.mark.parametrize("value", [64.5, True, "64", float("nan"), float("inf"), 1e300])
def test_what_is_no_whole_number_is_refused_by_name(value: object) -> None:
    assert "max_position_embeddings is" in refused(changed(max_position_embeddings=value))
