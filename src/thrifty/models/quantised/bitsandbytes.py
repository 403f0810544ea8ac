"""Checkpoints of bitsandbytes in 4 bits (NF4, FP4), as QLoRA (arXiv 2305.14314) writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from thrifty.arrays import Array, Floats
from thrifty.errors import CheckpointError, ConfigError
from thrifty.models.config.fields import Fields
from thrifty.models.huggingface.safetensors_file import TensorEntry
from thrifty.models.quantised.linears import REMEDY, TableCodes, expect

_STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")


@dataclass(frozen=True)
class BitsAndBytes:
    """weight uint8 [out·in/2, 1], row by row, the first of two codes in the high bits; quant_map fp32 [16]; absmax fp32
    [blocks], or uint8 beside nested_quant_map fp32 [256], nested_absmax fp32 and an offset (double quantisation).

    w = absmax·quant_map[code].
    """

    name: str = "bitsandbytes"
    marks: tuple[str, ...] = ("weight.absmax",)
    members: tuple[str, ...] = (
        "weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", *_STATES,
    )  # fmt: skip

    @classmethod
    def from_config(cls, fields: Fields) -> BitsAndBytes:
        """Raises ConfigError unless the file is of 4 bits."""
        if not fields.flag("load_in_4bit"):
            raise ConfigError(
                f"{fields.prefix}load_in_4bit is not set; bitsandbytes of 4 bits is supported, of 8 is not: {REMEDY}."
            )
        return cls()

    def check(self, module: str, tensors: Mapping[str, TensorEntry], rows: int, columns: int) -> None:
        weight = tensors.get("weight")
        if weight is not None and weight.dtype in ("BF16", "F16", "F32") and weight.nbytes * 2 == rows * columns:
            shape = weight.shape  # bnb_4bit_quant_storage: the same bytes by another name
            expect(module, tensors, "weight", (weight.dtype,), shape)
        else:
            expect(module, tensors, "weight", ("U8",), (math.ceil(rows * columns / 2), 1))
        expect(module, tensors, "weight.quant_map", ("F32",), (16,))
        if tensors["weight.absmax"].dtype == "U8":
            expect(module, tensors, "weight.nested_quant_map", ("F32",), (256,))
        if not any(state in tensors for state in _STATES):
            expect(module, tensors, _STATES[0], ("U8",))

    def read(self, tensors: Mapping[str, Array], rows: int, columns: int) -> TableCodes:
        """Raises CheckpointError where the state that is stored beside the weight does not fit it."""
        state = _state(next(tensors[name] for name in _STATES if name in tensors))
        block = _size(state, "blocksize")
        if state.get("shape") != [rows, columns]:
            raise CheckpointError(f"quant_state.shape is {state.get('shape')!r:.80}; expected {[rows, columns]}.")
        if columns % block or block % 32:
            raise CheckpointError(
                f"quant_state.blocksize is {block}; blocks of a multiple of 32 that make up rows of {columns} columns "
                f"are supported: {REMEDY}."
            )
        packed = tensors["weight"].reshape(-1).view(np.uint8).reshape(rows, columns // 2)
        codes = np.stack((packed >> 4, packed & 15), axis=-1).reshape(rows, columns)
        scales = _scales(tensors, state)
        if scales.size != rows * columns // block:
            raise CheckpointError(f"absmax has {scales.size} entries; expected {rows * columns // block}.")
        return TableCodes(codes, scales.reshape(rows, -1), tensors["weight.quant_map"].copy(), 4, block)


def _scales(tensors: Mapping[str, Array], state: Mapping[str, Any]) -> Floats:
    """absmax in fp32, as the package computes it: table[code]·nested absmax, then + offset, each rounded."""
    stored = tensors["weight.absmax"].reshape(-1)
    if stored.dtype != np.uint8:
        return stored.astype(np.float32)
    block, offset = _size(state, "nested_blocksize"), state.get("nested_offset")
    nested = tensors.get("weight.nested_absmax")
    if nested is None or nested.size != -(-stored.size // block) or not isinstance(offset, float | int):
        raise CheckpointError("nested_absmax or nested_offset is missing, or does not fit absmax.")
    values = tensors["weight.nested_quant_map"][stored] * np.repeat(nested.astype(np.float32), block)[: stored.size]
    scales: Floats = values + np.float32(offset)
    return scales


def _state(packed: Array) -> Mapping[str, Any]:
    try:
        state = json.loads(packed.astype(np.uint8).tobytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"quant_state is not JSON: {error}.") from error
    if not isinstance(state, dict):
        raise CheckpointError("quant_state is not a table.")
    return state


def _size(state: Mapping[str, Any], name: str) -> int:
    value = state.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 20:
        raise CheckpointError(f"quant_state.{name} is {value!r:.80}; it must be an integer from 1 to {1 << 20}.")
    return value
