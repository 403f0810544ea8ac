"""Small valid GGUF files for tests: a byte-level vocabulary, and the decoder of a tiny transformers model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import quantize
from tests.ggml_rows import random_rows

TEXTS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_tokens() -> list[str]:
    """The 256 byte symbols of GPT-2, three merges and three control tokens."""
    from thrifty.models.tokens.pieces import byte_of_character

    order = {byte: character for character, byte in byte_of_character().items()}
    return [*(order[byte] for byte in range(256)), "he", "ll", "hell", *TEXTS]


def add_tokenizer(writer: gguf.GGUFWriter, pre: str | None = "smollm") -> None:
    """The metadata of a byte-level tokenizer of 262 tokens; `pre` None leaves out how text is cut."""
    tokens = byte_tokens()
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in TEXTS else 1 for token in tokens])
    writer.add_token_merges(["h e", "l l", "he ll"])
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_chat_template("{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}")


def write(
    path: Path,
    architecture: str,
    fields: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    pre: str | None = "smollm",
    a_part: int = 0,
    **kinds: Type,
) -> Path:
    """A GGUF file; `kinds` by the last part of a tensor's name (such as attn_q) quantises it, "default" all.

    a_part: the most tensors of a part; the files are then called as the gguf package calls them. 0: a single file.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=a_part)
    for key, value in fields.items():
        _add(writer, key.format(arch=architecture), value)
    add_tokenizer(writer, pre)
    for name, values in tensors.items():
        kind = kinds.get(name.split(".")[-2], kinds.get("default", Type.F32))
        if values.ndim < 2 or kind == Type.F32:
            writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
        else:
            writer.add_tensor(name, quantize(np.ascontiguousarray(values, dtype=np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


LLAMA_FIELDS: Mapping[str, Any] = {
    "{arch}.block_count": 1,
    "{arch}.context_length": 64,
    "{arch}.embedding_length": 32,
    "{arch}.feed_forward_length": 64,
    "{arch}.attention.head_count": 2,
    "{arch}.attention.head_count_kv": 1,
    "{arch}.attention.layer_norm_rms_epsilon": 1e-5,
    "{arch}.rope.freq_base": 10000.0,
}


def llama_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """The tensors of one layer of 32 channels, tied embeddings."""
    random = np.random.default_rng(seed)
    shapes = {
        "token_embd": (262, 32),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32),
        "blk.0.ffn_down": (32, 64),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
        "output_norm": (32,),
    }
    return {f"{name}.weight": random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def tiny(path: Path, pre: str | None = "smollm", **kinds: Type) -> Path:
    """A whole tiny llama file."""
    return write(path, "llama", LLAMA_FIELDS, llama_tensors(), pre, **kinds)


def of_random_blocks(path: Path, kind: str) -> Path:
    """A llama file of one layer of 256 channels whose matrices are random blocks of one quantised type."""
    fields = dict(LLAMA_FIELDS) | {"{arch}.embedding_length": 256, "{arch}.feed_forward_length": 512}
    shapes = {name: values.shape for name, values in llama_tensors().items()}
    wide = {32: 256, 16: 128, 64: 512, 262: 262}
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in fields.items():
        _add(writer, key.format(arch="llama"), value)
    add_tokenizer(writer)
    for seed, (name, shape) in enumerate(shapes.items()):
        full = tuple(wide[size] for size in shape)
        if len(full) == 1:
            writer.add_tensor(name, np.ones(full, np.float32))
        else:
            writer.add_tensor(name, random_rows(kind, *full, seed), raw_dtype=Type[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# transformers' names and GGUF's, inside a layer
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}


def from_transformers(model: Any, architecture: str) -> dict[str, np.ndarray]:
    """The tensors that llama.cpp's converter would write for a transformers model."""
    found: dict[str, np.ndarray] = {}
    config = model.config
    gemma = architecture.startswith("gemma")
    after = gemma or architecture == "olmo2"
    norms = {"post_attention_layernorm": "post_attention_norm" if after else "ffn_norm"}
    norms |= {"pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        name = name.removeprefix("model.")
        if gemma and "norm" in name:
            values = values + 1
        if name in ("embed_tokens.weight", "norm.weight", "norm.bias", "lm_head.weight"):
            tied = name.startswith("lm_head") and config.tie_word_embeddings
            places = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
            module, leaf = name.split(".")
            if not tied:
                found[f"{places[module]}.{leaf}"] = values
            continue
        _, index, inner = name.split(".", 2)
        layer = f"blk.{index}"
        if inner.endswith("experts.gate_up_proj"):
            half = values.shape[1] // 2
            found[f"{layer}.ffn_gate_exps.weight"], found[f"{layer}.ffn_up_exps.weight"] = (
                values[:, :half],
                values[:, half:],
            )
            continue
        if inner.endswith("experts.down_proj"):
            found[f"{layer}.ffn_down_exps.weight"] = values
            continue
        inner, _, leaf = inner.rpartition(".")
        part = _LAYER.get(inner) or norms[inner]
        if architecture in ("llama", "granite", "smollm3", "deepseek") and part in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        found[f"{layer}.{part}.{leaf}"] = values
    return found
