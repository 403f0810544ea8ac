"""A tiny random checkpoint on disk, in the Hugging Face layout, with a byte-level tokenizer and a chat
template.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 128, 256, 4, 2, 64, 2
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def write_checkpoint(folder: Path, context: int = 4096, seed: int = 0) -> Path:
    """A Llama of two layers (head_dim 64, so that native kernels take it); returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 256, "eos_token_id": 257}))
    save_file(_weights(vocabulary, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _write_tokenizer(folder: Path) -> int:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|start|>", "<|end|>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|start|>", "eos_token": "<|end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab_size()


def _weights(vocabulary: int, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    ones = np.ones(HIDDEN, np.float32)

    def random(*shape: int) -> npt.NDArray[np.float32]:
        return generator.standard_normal(shape, dtype=np.float32) * np.float32(0.25)

    found = {"model.embed_tokens.weight": random(vocabulary, HIDDEN), "model.norm.weight": ones}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        found[f"{name}.self_attn.q_proj.weight"] = random(HEADS * HEAD_DIM, HIDDEN)
        found[f"{name}.self_attn.k_proj.weight"] = random(KV_HEADS * HEAD_DIM, HIDDEN)
        found[f"{name}.self_attn.v_proj.weight"] = random(KV_HEADS * HEAD_DIM, HIDDEN)
        found[f"{name}.self_attn.o_proj.weight"] = random(HIDDEN, HEADS * HEAD_DIM)
        found[f"{name}.mlp.gate_proj.weight"] = random(INTERMEDIATE, HIDDEN)
        found[f"{name}.mlp.up_proj.weight"] = random(INTERMEDIATE, HIDDEN)
        found[f"{name}.mlp.down_proj.weight"] = random(HIDDEN, INTERMEDIATE)
        found[f"{name}.input_layernorm.weight"] = ones
        found[f"{name}.post_attention_layernorm.weight"] = ones
    return found
