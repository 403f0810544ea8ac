"""A typed, suspicious reader of `config.json`: what nobody read, and could change the numerics, is refused
by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.errors import ConfigError
from thrifty.models.config import check_integer, check_number

# Fields that describe the file, training or generation, and never change a logit.
_HARMLESS = """
    _name_or_path architectures attention_dropout bad_words_ids begin_suppress_tokens bos_token_id
    cache_implementation chunk_size_feed_forward classifier_dropout decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size
    eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id hidden_dropout hidden_dropout_prob id2label initializer_range is_llama_config
    label2id length_penalty max_length min_length model_type no_repeat_ngram_size num_beam_groups
    num_beams num_labels num_return_sequences output_attentions output_hidden_states
    output_router_logits output_scores pad_token_id prefix pretraining_tp problem_type
    remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate
    router_aux_loss_coef router_jitter_noise sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype transformers.js_config
    transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache
"""
HARMLESS = frozenset(_HARMLESS.split())

# Fields whose meaning deserves better than "not supported".
EXPLAINED = {
    "alibi": "ALiBi position biases are not supported",
    "attn_logit_softcapping": "soft-capped attention scores are not supported for this family",
    "auto_map": "the checkpoint brings its own code, which is never run",
    "clip_qkv": "clipped queries, keys and values are not supported",
    "kv_lora_rank": "latent attention (DeepSeek) is not supported",
    "partial_rotary_factor": "rotating a part of each head is not supported",
    "q_lora_rank": "latent attention (DeepSeek) is not supported",
    "quantization_config": "use the unquantised checkpoint, or a GGUF file",
    "use_bidirectional_attention": "attention to later tokens is not supported",
}
# Unknown fields that change the numerics when they are false.
_FALSE_MATTERS = frozenset({"causal", "is_causal", "is_decoder_only", "rope", "use_rope"})


class Fields:
    """A table of `config.json`. Each method reads one field, checks it, and remembers that it was read.

    `prefix` goes before the field's name in messages. All methods raise ConfigError that names the field.
    """

    def __init__(self, data: object, prefix: str = "") -> None:
        if not isinstance(data, Mapping):
            raise ConfigError(f"{prefix.rstrip('.') or 'config.json'} is not a table.")
        self.data: Mapping[str, Any] = data
        self.prefix = prefix
        self.read: set[str] = set()

    def raw(self, *names: str) -> Any:
        """The value of the first of `names` that is present and not null; None where none is."""
        self.read.update(names)
        return next((self.data[name] for name in names if self.data.get(name) is not None), None)

    def integer(self, *names: str, low: int = 0, high: int, default: int | None = None) -> int:
        value = self.raw(*names)
        if value is None:
            value = self._default(names[0], default)
        check_integer(self.prefix + names[0], value, low, high)
        return int(value)

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        value = self.raw(name)
        if value is None:
            value = self._default(name, default)
        check_number(self.prefix + name, value, low, high)
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{self.prefix}{name} is {value!r:.80}; it must be true or false.")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.raw(name)
        if value is None:
            value = self._default(name, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.prefix}{name} is {value!r:.80}; it must be text.")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers; required."""
        value = self._default(name, self.raw(name))
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{self.prefix}{name} is {value!r:.80}; it must be a list of numbers.")
        for item in value:
            check_number(self.prefix + name, item, -1e12, 1e12)
        return tuple(float(item) for item in value)

    def integers(self, name: str, high: int) -> tuple[int, ...]:
        """One integer or a list of them from 0 to `high`; empty where the field is absent or null."""
        value = self.raw(name)
        if value is None:
            return ()
        values = list(value) if isinstance(value, list | tuple) else [value]
        for item in values:
            check_integer(self.prefix + name, item, 0, high)
        return tuple(values)

    def table(self, name: str) -> Fields | None:
        """A table inside this one; None where it is absent or null."""
        value = self.raw(name)
        return None if value is None else Fields(value, f"{self.prefix}{name}.")

    def finish(self, family: str) -> None:
        """Raise ConfigError for a field that was not read, is not known to be harmless, and is set."""
        for name, value in self.data.items():
            if name in self.read or name in HARMLESS or _is_unset(name, value):
                continue
            reason = EXPLAINED.get(name, f"this field is not known for {family} and could change the results")
            raise ConfigError(f"{self.prefix}{name} is {value!r:.80}: {reason}.")

    def _default(self, name: str, default: Any) -> Any:
        if default is None:
            raise ConfigError(f"{self.prefix}{name} is missing.")
        return default


def _is_unset(name: str, value: object) -> bool:
    if value is False:
        return name not in _FALSE_MATTERS
    return value is None or value in ("", [], {})
