"""A model as a GGUF file: what its formats store, in the types that have the same values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from thrifty.arrays import Array, Bytes, Integers
from thrifty.errors import CheckpointError, ConfigError, StorageError
from thrifty.formats.linear import PackedLinear
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.export.gguf_blocks import row_bytes, rows_of, writable
from thrifty.models.export.gguf_tokenizer import tokenizer_fields
from thrifty.models.export.gguf_writer import Tensor, Value, write_gguf
from thrifty.models.export.same_config import check_same
from thrifty.models.gguf.architectures import ARCHITECTURES
from thrifty.models.gguf.source import GGUFSource, tensor_name
from thrifty.models.model import Model
from thrifty.models.store.cache_directory import remove

ARCHITECTURE_OF: Mapping[str, str] = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""The GGUF architecture of the families of models that are written."""


def export_gguf(model: Model, target: Path) -> None:
    """Write `target`, whole or not at all; what is written is opened again and compared with the model's config.

    Raises CheckpointError (ConfigError for the config) naming the tensor or field that GGUF has no words for, with what
    to do instead; StorageError where the file is there; OSError.
    """
    architecture, target = _architecture(model.config), target.resolve()
    if target.exists():
        raise StorageError(f"{target} is there already: give a file that is not")
    tensors = [_tensor(model, architecture, name, value) for name, value in _parts(model)]
    metadata = _metadata(model, architecture)
    partial = target.with_name(f".{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_gguf(partial, metadata, tensors)
        check_same(GGUFSource(partial).config, model.config, "a GGUF file")
        partial.replace(target)
    finally:
        remove(partial)


def _architecture(config: ModelConfig) -> str:
    if config.family not in ARCHITECTURE_OF or any(layer.has_widths for layer in config.layers):
        known = ", ".join(sorted(ARCHITECTURE_OF))
        what = "has layers of different widths" if config.family in ARCHITECTURE_OF else f"is of {config.family!r}"
        raise ConfigError(f"this model {what}; models of {known} with equal layers are written to GGUF: run the folder")
    return ARCHITECTURE_OF[config.family]


def _parts(model: Model) -> Iterator[tuple[str, PackedLinear | Array]]:
    """Linears and their biases, then norms."""
    for name, linear in model.linears.items():
        yield name, linear
        if linear.bias is not None:
            yield f"{name}.bias", linear.bias
    yield from model.norms.items()


def _tensor(model: Model, architecture: str, part: str, value: PackedLinear | Array) -> Tensor:
    name = tensor_name(part)
    if name is None:
        raise CheckpointError(f"tensor '{part}' has no place in a GGUF file that is written here: run the folder")
    order = _order(model.config, architecture, part)
    if not isinstance(value, PackedLinear):
        vector = np.ascontiguousarray(value if order is None else value[order], "<f4")
        return Tensor(name, "F32", vector.shape, vector.nbytes, lambda: iter((vector.view(np.uint8),)))
    kind = writable(value)
    if kind is None:
        raise CheckpointError(
            f"tensor '{part}' is stored as {value.label}, which no type of GGUF that is written holds exactly: "
            "compress it to 4 or 8 bits in groups of 32 (rtn with group = 32; 8 bits with symmetric = true), or leave "
            "it in 16 bits (skip)"
        )
    shape = (value.out_features, value.in_features)
    return Tensor(name, kind, shape, shape[0] * row_bytes(kind, shape[1]), _rows(value, order))


def _rows(linear: PackedLinear, order: Integers | None) -> Callable[[], Iterator[Bytes]]:
    return lambda: rows_of(linear, order)


def _order(config: ModelConfig, architecture: str, part: str) -> Integers | None:
    """Where rows of query and key go whose architecture stores them for interleaved rotation, int64 [rows]."""
    heads = {"attention.query": config.heads, "attention.key": config.kv_heads}
    leaf = part.removesuffix(".bias")
    count = next((number for suffix, number in heads.items() if leaf.endswith(suffix)), None)
    if not ARCHITECTURES[architecture].permuted or count is None:
        return None
    return np.arange(count * config.head_dim).reshape(count, 2, -1).swapaxes(1, 2).reshape(-1)


def _metadata(model: Model, architecture: str) -> dict[str, Value]:
    """Raises CheckpointError for a model without a tokenizer, or one that cannot be written."""
    config = model.config
    rope = next(layer.rope for layer in config.layers)
    fields: dict[str, Value] = {
        "block_count": len(config.layers),
        "context_length": config.context_length,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_epsilon),
        "rope.dimension_count": rope.dimension,
        "rope.freq_base": float(rope.theta),
        "vocab_size": config.vocabulary_size,
    }
    name = model.path.stem if model.path is not None else architecture
    general: dict[str, Value] = {
        "general.architecture": architecture,
        "general.name": name,
        "general.quantization_version": 2,
    }
    tokenizer = tokenizer_fields(model.require_tokenizer(), config.vocabulary_size)
    return general | {f"{architecture}.{field}": value for field, value in fields.items()} | tokenizer
