"""The trained model as a Hugging Face directory that Thrifty and transformers read alike."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from thrifty.models.huggingface.names import llama_name
from thrifty.reference.decoder import Decoder
from training.recall.network import Shape
from training.recall.vocabulary import BEGIN, END, UNKNOWN


def export(decoder: Decoder, shape: Shape, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json, tokenizer.json, tokenizer_config.json and model.safetensors in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": BEGIN, "eos_token": END, "unk_token": UNKNOWN, "add_bos_token": True}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=1) + "\n")
    tensors = {llama_name(name): value.detach().to(torch.bfloat16) for name, value in decoder.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": 64,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.theta,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
