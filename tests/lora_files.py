"""LoRA adapters as PEFT writes them, by hand: the package is not needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from thrifty.arrays import Array
from thrifty.models.adapters import Adapter
from thrifty.models.huggingface.names import llama_name


def lora_tensors(adapter: Adapter) -> dict[str, Array]:
    """The tensors of an adapter, by PEFT's names."""
    tensors: dict[str, Array] = {}
    for name, (down, up) in adapter.weights.items():
        module = f"base_model.model.{llama_name(f'{name}.weight').removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = down, up
    return tensors


def write_lora(
    directory: Path,
    adapter: Adapter,
    *,
    rank: int,
    alpha: float,
    tensors: Mapping[str, Array] | None = None,
    **more: Any,
) -> None:
    """An adapter's directory. more: further fields of adapter_config.json."""
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "bias": "none",
        "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.05, "use_rslora": False, "use_dora": False,
        "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "inference_mode": True,
    }  # fmt: skip
    directory.mkdir(exist_ok=True, parents=True)
    (directory / "adapter_config.json").write_text(json.dumps(config | more))
    values = lora_tensors(adapter) if tensors is None else tensors
    save_file(
        {name: np.ascontiguousarray(value) for name, value in values.items()}, directory / "adapter_model.safetensors"
    )
