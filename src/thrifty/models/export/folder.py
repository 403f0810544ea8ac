"""A model as a folder that the packages of GPTQ and AWQ read: plain safetensors, config.json, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial as partial_of
from pathlib import Path
from typing import Any, Literal

import numpy as np

from thrifty.arrays import BFLOAT16, Array
from thrifty.errors import CheckpointError, ConfigError, StorageError
from thrifty.formats.gguf import ArrayShape
from thrifty.formats.linear import PackedLinear
from thrifty.models.compressed.safetensors_writer import write_safetensors
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.export.files import is_integer
from thrifty.models.export.integers import IntegerLinear, awq_tensors, check_sizes, gptq_tensors
from thrifty.models.export.same_config import check_same
from thrifty.models.huggingface.folder import read_config
from thrifty.models.huggingface.names import llama_name
from thrifty.models.model import Model
from thrifty.models.store.cache_directory import publish, remove
from thrifty.models.store.cache_entry import write_file
from thrifty.models.tokens.tokenizer import Tokenizer

Kind = Literal["gptq", "awq"]

FAMILIES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""The families of models that are written, and what transformers calls their classes."""
_NAMES = {"gptq": "GPTQ", "awq": "AWQ"}


def export_folder(model: Model, target: Path, kind: Kind) -> None:
    """Write the folder `target`, whole or not at all; its config is read again and compared with the model's.

    Raises CheckpointError (ConfigError for the config) naming the tensor or field that such a checkpoint has no words
    for, with what to do instead; StorageError where the folder is there; OSError.
    """
    target = target.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"{target} is there already: give a folder that is not")
    config = _config(model.config)
    quantisation = _quantisation(model, kind)
    partial = target.with_name(f".{target.name}.partial")
    try:
        remove(partial)
        partial.mkdir(parents=True)
        write_file(partial / "config.json", _json(config | {"quantization_config": quantisation}))
        check_same(read_config(partial), model.config, f"a checkpoint of {_NAMES[kind]}")
        # Made twice, so that no more than one linear is held: the file begins with the shapes of all.
        arrays = partial_of(_arrays, model, kind, quantisation)
        shapes: dict[str, ArrayShape] = {name: (array.shape, array.dtype) for name, array in arrays()}
        write_safetensors(partial / "model.safetensors", shapes, arrays(), {"format": "pt"}, alignment=1)
        _write_tokenizer(partial, model.tokenizer, model.config)
        publish(partial, target)
    finally:
        remove(partial)


def _quantisation(model: Model, kind: Kind) -> dict[str, Any]:
    """`quantization_config`, one for all layers. Raises CheckpointError naming a linear that is stored otherwise."""
    chosen: tuple[int, int] | None = None
    zero = False
    for name, linear in model.linears.items():
        if not name.startswith("layers."):
            continue
        if not is_integer(linear) or (kind == "awq" and linear.bits != 4):  # type: ignore[attr-defined]
            raise CheckpointError(
                f"tensor '{name}' is stored as {linear.label}{_minimums(linear)}, which {_NAMES[kind]} cannot say: "
                f"compress it with a scale and no minimum, such as rtn with symmetric = true and bits = 4"
            )
        bits, group = linear.bits, linear.group  # type: ignore[attr-defined]
        check_sizes(name, linear, bits)
        chosen = chosen or (bits, group)
        if chosen != (bits, group):
            raise CheckpointError(
                f"tensor '{name}' has {bits} bits in groups of {group}, others {chosen[0]} in groups of {chosen[1]}; "
                f"{_NAMES[kind]} has one setting for all: compress all layers alike, or run the folder"
            )
        zero = zero or bool((IntegerLinear.of(linear).zeros == 0).any())
    assert chosen is not None, "a decoder has layers"
    if kind == "awq":
        return {
            "quant_method": "awq", "bits": chosen[0], "group_size": chosen[1], "zero_point": True, "version": "gemm",
        }  # fmt: skip
    form = {"checkpoint_format": "gptq_v2" if zero else "gptq", "desc_act": False, "sym": not zero}
    return {"quant_method": "gptq", "bits": chosen[0], "group_size": chosen[1], **form}


def _minimums(linear: PackedLinear) -> str:
    return " with minimums" if getattr(linear, "minimums", None) is not None else ""


def _config(config: ModelConfig) -> dict[str, Any]:
    """As transformers writes it, for the families that are known."""
    if config.family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(f"this model is of {config.family!r}; models of {known} are written so: run the folder")
    biases = {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    return (biases if config.family == "llama" else {}) | {
        "architectures": [FAMILIES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.layers[0].rope.theta,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": config.bos_ids[0] if config.bos_ids else None,
        "eos_token_id": list(config.eos_ids) or None,
        "pad_token_id": config.pad_id,
        "torch_dtype": "float16",
    }


def _arrays(model: Model, kind: Kind, quantisation: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    for name, linear in model.linears.items():
        path = llama_name(f"{name}.weight")
        if name.startswith("layers."):
            codes = IntegerLinear.of(linear)
            version = 2 if quantisation.get("checkpoint_format") == "gptq_v2" else 1
            tensors = awq_tensors(codes) if kind == "awq" else gptq_tensors(codes, quantisation["group_size"], version)
            for member, array in tensors.items():
                yield f"{path.removesuffix('.weight')}.{member}", array
        else:
            yield path, _plain(name, linear, kind)
        if linear.bias is not None:
            yield llama_name(f"{name}.bias"), linear.bias
    for name, norm in model.norms.items():
        yield llama_name(name if name.endswith(".bias") else f"{name}.weight"), norm


def _plain(name: str, linear: PackedLinear, kind: Kind) -> Array:
    """Embedding and logits in 16 bits: in their own type, or from codes and fp32 rounded to float16."""
    weight = linear.dequantize()
    if linear.label == "bf16":
        return weight.astype(BFLOAT16)
    greatest = float(np.abs(weight).max(initial=0))
    if not greatest <= float(np.finfo(np.float16).max):  # NaN too
        raise CheckpointError(
            f"tensor '{name}' is stored as {linear.label} and has a value of {greatest:g}; {_NAMES[kind]} keeps it "
            "in float16, up to 65504: export to GGUF, or run the folder"
        )
    return weight.astype(np.float16)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer | None, config: ModelConfig) -> None:
    ids = {"eos_token_id": list(config.eos_ids), "bos_token_id": config.bos_ids[0] if config.bos_ids else None}
    write_file(folder / "generation_config.json", _json({key: value for key, value in ids.items() if value}))
    if tokenizer is None:
        return
    settings = tokenizer.settings
    table = {
        **tokenizer.special_tokens,
        "add_bos_token": settings.add_bos,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if settings.chat_template is not None:
        table["chat_template"] = settings.chat_template
    write_file(folder / "tokenizer.json", tokenizer.definition.encode("utf-8"))
    write_file(folder / "tokenizer_config.json", _json(table))


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode("utf-8")
