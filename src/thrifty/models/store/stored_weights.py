"""Weights in a file: what an index says of each, and how they are read from the file's content."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from thrifty.arrays import BFLOAT16, Array, Bytes
from thrifty.errors import CheckpointError
from thrifty.formats.linear import PackedLinear
from thrifty.models.source import DType, Weight

DTYPES: Mapping[str, DType] = {
    "u8": np.dtype(np.uint8),
    "i8": np.dtype(np.int8),
    "u16": np.dtype("<u2"),
    "i16": np.dtype("<i2"),
    "u32": np.dtype("<u4"),
    "i32": np.dtype("<i4"),
    "u64": np.dtype("<u8"),
    "i64": np.dtype("<i8"),
    "f16": np.dtype("<f2"),
    "bf16": BFLOAT16,
    "f32": np.dtype("<f4"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: DType) -> str:
    """What an index calls an array's type. Raises CheckpointError for one that no file holds."""
    if dtype not in _NAMES:
        raise CheckpointError(f"arrays of {dtype} are not stored; these are: {', '.join(DTYPES)}")
    return _NAMES[dtype]


def view(data: Bytes, place: Mapping[str, Any], name: str) -> Array:
    """An array of a file's content by its entry in the index: dtype, shape, and the byte it starts at.

    name: of what is read, file first, for the CheckpointError where it ends beyond the file.
    """
    dtype, shape, start = DTYPES[place["dtype"]], place["shape"], place["offset"]
    stop = start + prod(shape) * dtype.itemsize
    if not 0 <= start <= stop <= len(data):
        raise CheckpointError(f"{name} ends beyond the file")
    return data[start:stop].view(dtype).reshape(shape)


def read_weight(entry: Mapping[str, Any], data: Bytes, file: str) -> Weight:
    """The weight of an entry of the index: linears are views of the file's content, norms and biases are copies.

    Raises CheckpointError naming the file and the part, or the field of a linear that is wrong.
    """
    name = entry["name"]
    arrays = {key: view(data, place, f"{file}: '{name}'") for key, place in entry["tensors"].items()}
    if not entry["meta"] and "value" not in arrays:
        raise CheckpointError(
            f"{file}: '{name}' says neither in which format it is nor has it an array 'value': the file is damaged"
        )
    value = PackedLinear.from_state(entry["meta"], arrays) if entry["meta"] else arrays["value"].copy()
    return Weight(name, value, entry["origin"], entry["error"], entry["largest_error"])
