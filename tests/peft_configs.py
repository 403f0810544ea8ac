"""adapter_config.json as versions of PEFT write it, every field at its default but the rank's and the targets'.

Facts of PEFT's LoraConfig: 0.14 to 0.17 do not write their version.
"""

from __future__ import annotations

from typing import Any

_FIRST: dict[str, Any] = {
    "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "some/model", "bias": "none",
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "layer_replication": None, "layers_pattern": None, "layers_to_transform": None,
    "loftq_config": {}, "lora_alpha": 6, "lora_bias": False, "lora_dropout": 0.0, "megatron_config": None,
    "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA", "r": 3, "rank_pattern": {},
    "revision": None, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", "use_dora": False,
    "use_rslora": False,
}  # fmt: skip
_SINCE: dict[str, dict[str, Any]] = {
    "0.14.0": {},
    "0.16.0": {"corda_config": None, "trainable_token_indices": None},
    "0.17.0": {"qalora_group_size": 16, "target_parameters": None, "use_qalora": False},
    "0.18.1": {
        "alora_invocation_tokens": None, "arrow_config": None, "ensure_weight_tying": False, "peft_version": "0.18.1",
    },
    "0.19.1": {"lora_ga_config": None, "use_bdlora": None, "peft_version": "0.19.1"},
    "0.21.2": {"kasa_config": None, "monteclora_config": None, "velora_config": None, "peft_version": "0.21.2"},
}  # fmt: skip


def _all() -> dict[str, dict[str, Any]]:
    configs, fields = {}, dict(_FIRST)
    for version, more in _SINCE.items():
        fields = fields | more
        configs[version] = fields
    return configs


PEFT_CONFIGS = _all()
"""By version all fields, of rank 3 and alpha 6."""
