"""Fields of `config.json` that never change a logit, and the values at which the others change nothing.

Libraries that train, merge, quantise and serve write their own fields beside a model's; what describes the file,
training, generation, the tokenizer or how the same numbers are computed is no reason to refuse a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_HARMLESS = """
    architecture architectures attention_implementation attention_softmax_in_fp32 attn_impl attn_implementation
    author base_model base_model_name_or_path bf16 cache_config cache_dtype cache_implementation chat_format
    chat_template chunk_size_feed_forward citation ckpt_path commit compile_config contact created
    cross_attention_hidden_size custom_pipelines dataset datasets date description device device_map disable_compile
    dtype embd_pdrop ep_size finetuned finetuning_task fp16 fp32 framework ft_method generation_config
    generation_params gradient_checkpointing id2label ignore_index inference_mode initializer_factor
    initializer_range is_assistant is_decoder is_llama_config keys_to_ignore_at_inference label2id language
    languages learning_rate library library_name license license_name load_in_4bit load_in_8bit max_new_tokens
    max_seq_len max_seq_length max_sequence_length max_window_layers model_creator model_max_length model_name
    model_revision model_size model_type model_version n_ctx n_positions name _name_or_path num_labels
    num_logits_to_keep original_vocab_size output_attentions output_hidden_states output_logits output_past
    output_router_logits output_scores pad_to_multiple_of pad_vocab_size_multiple_of padding_side param_dtype
    pipeline_tag prefix pretraining_tp problem_type pruned_heads remove_unused_columns residual_in_fp32 return_dict
    revision reward_model router_dtype router_jitter_noise scale_attention_softmax_in_fp32 seed seq_len seq_length
    sequence_length sequence_parallel softmax_in_fp32 system_prompt tags task task_specific_params tensor_parallel
    tensor_parallel_degree tensor_parallel_size tf_legacy_loss tie_encoder_decoder timestamp tokenizer
    tokenizer_class torch_dtype torchscript tp_size train_max_seq_len transformers.js_config transformers_version
    trust_remote_code use_bfloat16 use_cache use_return_dict use_sliding_window version world_size
"""
_GENERATION = """
    assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind bad_words_ids
    begin_suppress_tokens constraints decoder_start_token_id diversity_penalty do_sample dola_layers early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty force_words_ids guidance_scale length_penalty low_memory max_cache_len max_length
    max_matching_ngram_size max_time min_length min_new_tokens min_p no_repeat_ngram_size num_assistant_tokens
    num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences penalty_alpha prefill_chunk_size
    prompt_lookup_num_tokens remove_invalid_values renormalize_logits repetition_penalty return_dict_in_generate
    sequence_bias stop_strings suppress_tokens target_lookbehind temperature token_healing top_h top_k top_p typical_p
    watermarking_config
"""
HARMLESS = frozenset(_HARMLESS.split()) | frozenset(_GENERATION.split())

_HARMLESS_PATTERNS = re.compile(
    r"_?attn_implementation\w*|_(flash|sdpa|experts_implementation|commit|from|hf|auto|diffusers|unsloth)\w*"
    r"|(?!use_rope)use_(flash|fused|fast|sdpa|memory_efficient|mem_eff|triton|kernel|liger|xformers|cuda|compile)\w*"
    r"|(flash|fused)_(attn|attention)\w*"
    r"|(?!num_|n_)\w*(_token_id|_token_ids|_token_index|_token)"  # the tokenizer has the last word
    r"|\w*(dropout|layerdrop|pdrop|drop_path)\w*"  # training only
    r"|\w*(aux_loss|z_loss|loss_coef|loss_weight|loss_type|loss_function|lm_loss|balancing_loss)\w*"
    r"|gradient_\w+|init_(std|method|scale|device|cutoff_factor)\w*|\w+_init_std|neftune_\w+"
    r"|lora_\w+"  # merged into the weights: a tensor of its own would have no place
    r"|(ddp|fsdp|dpo|sft|grpo|merge|eval|train|optim|warmup|dataset|dataloader|checkpoint|save|logging|lr)_\w+"
    r"|epochs?|num_(train_)?epochs|num_train_\w+|max_steps|optimizer|lr|batch_size|weight_decay|metrics?"
    r"|(virtual_)?[tp]p_degree"
    r"|(tokenizer|summary|classifier|unsloth|training|trl|axolotl|peft|deepspeed|wandb|mergekit|hub|reward)_\w+"
    r"|base_model_(tp|pp|ep)_plan|(tp|pp|ep)_plan"
)

_LATENT = (
    "latent attention (DeepSeek V2, V3) is not built yet; use a model without it, such as DeepSeek's distillations "
    "into Qwen and Llama"
)
# Fields whose meaning deserves better than "not supported".
EXPLAINED = {
    "alibi": "ALiBi position biases are not supported; use another checkpoint",
    "attn_logit_softcapping": "soft-capped attention scores are not supported for this family; use another checkpoint",
    "auto_map": (
        "the checkpoint brings its own code, which is never run; where it only repeats the library's, remove the field"
    ),
    "clip_qkv": "clipped queries, keys and values are not supported; use another checkpoint",
    "kv_lora_rank": _LATENT,
    "partial_rotary_factor": "rotating a part of each head is not supported for this family; use another checkpoint",
    "q_lora_rank": _LATENT,
    "qk_layernorm": "a layer norm of each head of query and key is not supported; use another checkpoint",
    "quantization": "use the unquantised checkpoint, or a GGUF file",
    "quantization_config": (
        "use the unquantised checkpoint, or a GGUF file; where the weights were merged back into full precision, "
        "remove the field"
    ),
    "use_parallel_residual": "attention and MLP side by side are not supported; use another checkpoint",
    "use_bidirectional_attention": "attention to later tokens is not supported; use another checkpoint",
}

_TRUE = frozenset(
    {"causal", "is_causal", "is_decoder_only", "no_bias", "rope", "use_rope", "use_rotary"}
    | {"use_rms_norm", "use_rmsnorm", "rms_norm"}
)
_ONES = """
    attention_factor attention_temperature embedding_multiplier embedding_scale factor lm_head_multiplier
    logit_scale logits_scaling moe_layer_freq n_group partial_rotary_factor residual_multiplier rope_pct rope_ratio
    rotary_pct rotary_percent routed_scaling_factor router_scaling_factor scale_emb topk_group
"""
_ONE = frozenset(_ONES.split())
_ZERO = frozenset({"alibi", "attn_logit_softcapping", "kv_lora_rank", "logit_softcap", "q_lora_rank"})
_COUNT = re.compile(
    r"(num|n)_\w+|\w+_(layers|experts|heads|count|replace)|shared_expert_intermediate_size|hidden_size_per_layer_input"
)
_NORMS, _POSITIONS = ("rms_norm", "rmsnorm", "rms"), ("rope", "rotary")
_WORDS = {
    "norm_type": _NORMS,
    "normalization": _NORMS,
    "normalization_type": _NORMS,
    "pos_emb": _POSITIONS,
    "position_embedding": _POSITIONS,
    "position_embedding_type": _POSITIONS,
}
_EQUAL = {  # other libraries' names: harmless where they repeat the field that is read
    "dim": "hidden_size",
    "hidden_dim": "hidden_size",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "num_layers": "num_hidden_layers",
    "n_kv_heads": "num_key_value_heads",
    "num_kv_heads": "num_key_value_heads",
    "layer_norm_eps": "rms_norm_eps",
    "layer_norm_epsilon": "rms_norm_eps",
    "norm_eps": "rms_norm_eps",
    "activation": "hidden_act",
    "hidden_act": "hidden_activation",
    "hidden_activation": "hidden_act",
    "activation_function": "hidden_act",
    "rope_base": "rope_theta",
    "rotary_base": "rope_theta",
    "rotary_embedding_base": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "tie_embeddings": "tie_word_embeddings",
    "share_embeddings": "tie_word_embeddings",
}


def changes_nothing(name: str, value: object, data: Mapping[str, Any]) -> bool:
    """Whether a field that no reader asked for is harmless: whatever its value, or at this one beside the others of
    `data`.
    """
    if name in HARMLESS or _HARMLESS_PATTERNS.fullmatch(name):
        return True
    if name in _TRUE:
        return value is None or value is True
    if value is None or value is False or value in ("", [], {}):
        return True
    if name in _ONE and not isinstance(value, bool):
        return value == 1
    if name in _WORDS:
        return isinstance(value, str) and value.lower() in _WORDS[name]
    if name in _EQUAL and data.get(_EQUAL[name]) is not None:
        return bool(value == data[_EQUAL[name]])
    if (name in _ZERO or _COUNT.fullmatch(name)) and not isinstance(value, bool) and value == 0:
        return True  # none of them
    rule = _RULES.get(name)
    return rule is not None and rule(value, data)


def _no_window(value: object, data: Mapping[str, Any]) -> bool:
    """A window that is switched off, or as long as the context."""
    context = data.get("max_position_embeddings")
    if data.get("use_sliding_window") is False:
        return True
    return isinstance(value, int) and isinstance(context, int) and value >= context


def _all_full(value: object, data: Mapping[str, Any]) -> bool:
    return isinstance(value, list) and all(item == "full_attention" for item in value)


def _head_dim(value: object, data: Mapping[str, Any]) -> bool:
    """Another name for `head_dim`, or for what it is where it is not stated."""
    hidden, heads, stated = (data.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim"))
    if stated is not None:
        return bool(value == stated)
    return isinstance(value, int) and isinstance(hidden, int) and isinstance(heads, int) and value * heads == hidden


def _key_value_groups(value: object, data: Mapping[str, Any]) -> bool:
    heads, kv_heads = data.get("num_attention_heads"), data.get("num_key_value_heads")
    return isinstance(value, int) and isinstance(kv_heads, int) and value * kv_heads == heads


_RULES: Mapping[str, Callable[[object, Mapping[str, Any]], bool]] = {
    "sliding_window": _no_window,
    "layer_types": _all_full,
    "num_key_value_groups": _key_value_groups,
    "kv_channels": _head_dim,
    "qk_head_dim": _head_dim,
    "v_head_dim": _head_dim,
}
