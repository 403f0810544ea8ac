"""A GGUF file, version 3: metadata, the table of tensors, their bytes each at a multiple of 32.

Format: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from thrifty.arrays import Bytes

Value = bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]

ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
# GGUF's numbers of the types that are written.
TYPES: Mapping[str, int] = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ4_NL": 20,
    "IQ4_XS": 23,
    "BF16": 30,
}


@dataclass(frozen=True)
class Tensor:
    """shape: in the usual order. rows: its bytes, uint8 [rows, row bytes], some rows at a time; asked for once."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    rows: Callable[[], Iterator[Bytes]]


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Sequence[Tensor]) -> None:
    """A new file; it is on the disk when this returns. Raises OSError."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(_string(key) + _value(value) for key, value in metadata.items())
    offset = 0
    for tensor in tensors:
        sizes = [*reversed(tensor.shape)]
        head += _string(tensor.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        head += struct.pack("<IQ", TYPES[tensor.type], offset)
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % ALIGNMENT))
        for tensor in tensors:
            written = sum(file.write(rows.tobytes()) for rows in tensor.rows())
            assert written == tensor.nbytes, tensor.name
            file.write(bytes(-written % ALIGNMENT))
        file.flush()
        os.fsync(file.fileno())


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    """Type and content. Whole numbers below zero are int32, others uint32."""
    kind, content = _content(value)
    return struct.pack("<I", kind) + content


def _content(value: Value) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return (_UINT32, struct.pack("<I", value)) if value >= 0 else (_INT32, struct.pack("<i", value))
    if isinstance(value, float):
        return _FLOAT32, struct.pack("<f", value)
    if isinstance(value, str):
        return _STRING, _string(value)
    inner = [_content(item) for item in value]
    kind = inner[0][0] if inner else _STRING
    if kind == _UINT32:  # types of tokens, which others read as int32
        kind = _INT32
    return _ARRAY, struct.pack("<IQ", kind, len(inner)) + b"".join(content for _, content in inner)
