"""A Llama of random weights as a GGUF file: for speed, there is nothing to read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

CONTEXT = 8192
TYPES = {kind.name: kind for kind in gguf.GGMLQuantizationType}
DEVIATION = 0.02  # of the weights, about


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes. mixture: the type of every matrix, or "Q4_K_M", which mixes Q4_K and Q6_K as llama.cpp does."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    mixture: str

    def kind(self, tensor: str, layer: int) -> str:
        """The type of a matrix."""
        if self.mixture != "Q4_K_M":
            return self.mixture
        eighth = self.layers // 8
        more = layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2
        return "Q6_K" if tensor == "output" or (tensor in ("attn_v", "ffn_down") and more) else "Q4_K"


SHAPES = {
    "1.1B-Q4_0": Shape(2048, 22, 32, 4, 5632, 32000, "Q4_0"),  # TinyLlama
    "1.1B-Q4_1": Shape(2048, 22, 32, 4, 5632, 32000, "Q4_1"),
    "7B-Q4_K_M": Shape(4096, 32, 32, 32, 11008, 32000, "Q4_K_M"),  # Llama 2
}
CONTROL, BYTE, NORMAL, UNKNOWN = 3, 6, 1, 2  # types of tokens


def write_random_llama(path: Path, name: str, seed: int = 0) -> None:
    """Write the file of one of `SHAPES`, atomically; a tensor at a time is in memory, a copy of all on the disk."""
    shape = SHAPES[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(partial, "llama", use_temp_file=True)
    _add_fields(writer, shape)
    _add_tokenizer(writer, shape.vocabulary)
    random = np.random.default_rng(seed)
    for tensor, kind, sizes in _tensors(shape):
        if kind is None:
            writer.add_tensor(tensor, np.ones(sizes, np.float32))
        else:
            writer.add_tensor(tensor, _BLOCKS[kind](random, *sizes), raw_dtype=TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def _fixed(value: float, rows: int, blocks: int) -> np.ndarray:
    """One fp16 number a block, as bytes."""
    return np.full((rows, blocks, 1), value, np.float16).view(np.uint8)


def _codes(random: np.random.Generator, rows: int, blocks: int, size: int) -> np.ndarray:
    return random.integers(0, 256, (rows, blocks, size), dtype=np.uint8)


def _q4_0(random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    scale = DEVIATION / 4.6  # 4.6: the deviation of codes
    parts = [_fixed(scale, rows, columns // 32), _codes(random, rows, columns // 32, 16)]
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


def _q4_1(random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    scale, blocks = DEVIATION / 4.6, columns // 32
    parts = [_fixed(scale, rows, blocks), _fixed(-7.5 * scale, rows, blocks), _codes(random, rows, blocks, 16)]
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


def _q4_k(random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """d, dmin, twelve bytes of 6-bit scales and minimums, 128 of codes; the minimums take off the mean."""
    scale, blocks = DEVIATION / 250, columns // 256  # 250: the deviation of scale times code less minimum
    parts = [_fixed(scale, rows, blocks), _fixed(7.5 * scale, rows, blocks), _codes(random, rows, blocks, 12 + 128)]
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


def _q6_k(random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """192 bytes of codes, sixteen int8 scales, d."""
    blocks = columns // 256
    parts = [_codes(random, rows, blocks, 192 + 16), _fixed(DEVIATION / 1365, rows, blocks)]
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


_BLOCKS = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q4_K": _q4_k, "Q6_K": _q6_k}


def _tensors(shape: Shape) -> Iterator[tuple[str, str | None, tuple[int, ...]]]:
    """Name, type (None: fp32) and sizes."""
    hidden = shape.hidden
    yield "token_embd.weight", shape.kind("token_embd", -1), (shape.vocabulary, hidden)
    yield "output_norm.weight", None, (hidden,)
    yield "output.weight", shape.kind("output", -1), (shape.vocabulary, hidden)
    narrow = hidden // shape.heads * shape.kv_heads
    matrices = {
        "attn_q": (hidden, hidden),
        "attn_k": (narrow, hidden),
        "attn_v": (narrow, hidden),
        "attn_output": (hidden, hidden),
        "ffn_gate": (shape.intermediate, hidden),
        "ffn_up": (shape.intermediate, hidden),
        "ffn_down": (hidden, shape.intermediate),
    }
    for layer in range(shape.layers):
        for name, sizes in matrices.items():
            yield f"blk.{layer}.{name}.weight", shape.kind(name, layer), sizes
        yield f"blk.{layer}.attn_norm.weight", None, (hidden,)
        yield f"blk.{layer}.ffn_norm.weight", None, (hidden,)


def _add_fields(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_block_count(shape.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(shape.vocabulary)


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    """The least that readers take: control tokens, bytes, and words to fill up."""
    special = ["<unk>", "<s>", "</s>"]
    octets = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"\u2581w{index}" for index in range(vocabulary - len(special) - len(octets))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(special + octets + words)
    writer.add_token_scores([0.0] * (len(special) + len(octets)) + [-float(index) for index in range(len(words))])
    writer.add_token_types([UNKNOWN, CONTROL, CONTROL] + [BYTE] * len(octets) + [NORMAL] * len(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
