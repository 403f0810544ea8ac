"""A Llama of 1.1 billion random weights (TinyLlama's shape) as a GGUF file: for speed, there is nothing to read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE, VOCABULARY, CONTEXT = 2048, 22, 32, 4, 5632, 32000, 8192
KINDS = {"Q4_0": gguf.GGMLQuantizationType.Q4_0, "Q4_1": gguf.GGMLQuantizationType.Q4_1}
CONTROL, BYTE, NORMAL, UNKNOWN = 3, 6, 1, 2  # types of tokens


def write_random_llama(path: Path, kind: str, seed: int = 0) -> None:
    """Write the file, atomically. kind: "Q4_0" or "Q4_1", of every matrix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(partial, "llama")
    _add_fields(writer)
    _add_tokenizer(writer)
    random = np.random.default_rng(seed)
    for name, shape in _shapes():
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
        else:
            writer.add_tensor(name, _blocks(random, shape, kind), raw_dtype=KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def _blocks(random: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Bytes [rows, columns / 32 · block] of random codes: per 32 weights an fp16 scale (and minimum), 16 bytes."""
    rows, groups = shape[0], shape[1] // 32
    scale = np.full((rows, groups, 1), 0.02 / 4.6, np.float16)  # 4.6: the deviation of codes
    parts = [scale.view(np.uint8)]
    if kind == "Q4_1":
        parts.append((scale * np.float16(-7.5)).view(np.uint8))
    parts.append(random.integers(0, 256, (rows, groups, 16), dtype=np.uint8))
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (VOCABULARY, HIDDEN)
    yield "output_norm.weight", (HIDDEN,)
    yield "output.weight", (VOCABULARY, HIDDEN)
    narrow = HIDDEN // HEADS * KV_HEADS
    for layer in range(LAYERS):
        start = f"blk.{layer}"
        for name, rows in (("attn_q", HIDDEN), ("attn_k", narrow), ("attn_v", narrow), ("attn_output", HIDDEN)):
            yield f"{start}.{name}.weight", (rows, HIDDEN)
        yield f"{start}.ffn_gate.weight", (INTERMEDIATE, HIDDEN)
        yield f"{start}.ffn_up.weight", (INTERMEDIATE, HIDDEN)
        yield f"{start}.ffn_down.weight", (HIDDEN, INTERMEDIATE)
        yield f"{start}.attn_norm.weight", (HIDDEN,)
        yield f"{start}.ffn_norm.weight", (HIDDEN,)


def _add_fields(writer: gguf.GGUFWriter) -> None:
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """The least that readers take: control tokens, bytes, and words to fill up."""
    special = ["<unk>", "<s>", "</s>"]
    octets = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"\u2581w{index}" for index in range(VOCABULARY - len(special) - len(octets))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(special + octets + words)
    writer.add_token_scores([0.0] * (len(special) + len(octets)) + [-float(index) for index in range(len(words))])
    writer.add_token_types([UNKNOWN, CONTROL, CONTROL] + [BYTE] * len(octets) + [NORMAL] * len(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
