"""A model as a Hugging Face folder, so that transformers reads what Thrifty reads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from thrifty import reference
from thrifty.errors import CheckpointError
from thrifty.models.huggingface.names import llama_name
from thrifty.reference.loading import ReferenceModel


def exported(model: str, folder: Path) -> Path:
    """The folder of a checkpoint that transformers can read: its own where it is one, else `folder`, written once with
    the weights in bf16 (quantised ones at their exact values). Raises CheckpointError for what is no plain Llama.
    """
    own = Path(model)
    if (own / "config.json").exists():
        return own
    if not (folder / "config.json").exists():
        loaded = reference.load(model, dtype=torch.float32)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(loaded, partial)
        os.replace(partial, folder)
    return folder


def write(model: ReferenceModel, folder: Path) -> None:
    """Config, weights and tokenizer. Raises CheckpointError for what is no plain Llama."""
    (folder / "config.json").write_text(json.dumps(config(model)))
    tensors = {}
    for name, value in model.decoder.state_dict().items():
        tensors[llama_name(name)] = value.to(torch.bfloat16).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.tokenizer.backend.save(str(folder / "tokenizer.json"))
    settings = model.tokenizer.settings
    written = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": settings.chat_template,
        **model.tokenizer.special_tokens,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(written))


def config(model: ReferenceModel) -> dict[str, Any]:
    """config.json of a Llama. Raises CheckpointError naming what a Llama has not."""
    own = model.config
    rope = own.layers[0].rope
    strange = {
        "sliding windows": any(layer.window for layer in own.layers),
        "experts": own.experts is not None,
        "query or key norms": own.qk_norm != "none",
        "norms after": own.post_norms,
        "norm offset": own.norm_offset != 0.0,
        "embedding scale": own.embedding_scale != 1.0,
        "softcap": own.final_softcap is not None or own.attention_softcap is not None,
        "activation": own.activation != "silu",
        "scaled or partial rope": rope.scaling is not None or rope.dimension != own.head_dim,
        "several ropes": any(layer.rope != rope for layer in own.layers),
        "output bias": own.output_bias != own.attention_bias,
    }
    found = [what for what, there in strange.items() if there]
    if found:
        raise CheckpointError(f"{', '.join(found)}: only plain Llamas are exported; give a Hugging Face folder instead")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": own.vocabulary_size,
        "hidden_size": own.hidden_size,
        "intermediate_size": own.intermediate_size,
        "num_hidden_layers": len(own.layers),
        "num_attention_heads": own.heads,
        "num_key_value_heads": own.kv_heads,
        "head_dim": own.head_dim,
        "max_position_embeddings": own.context_length,
        "rms_norm_eps": own.norm_epsilon,
        "rope_theta": rope.theta,
        "hidden_act": "silu",
        "attention_bias": own.attention_bias,
        "mlp_bias": own.mlp_bias,
        "tie_word_embeddings": own.tied_embeddings,
        "bos_token_id": own.bos_ids[0] if own.bos_ids else None,
        "eos_token_id": list(own.eos_ids) or None,
        "torch_dtype": "bfloat16",
    }
