"""A strict reader of GGUF headers (versions 2 and 3, little endian).

Every count, length, dimension and offset is checked against the file's size before anything is allocated, so that a
hostile file costs at most a small multiple of its own size and ends in a CheckpointError that names the field. Format:
the GGUF specification of the ggml project.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from thrifty.errors import CheckpointError
from thrifty.models.checked_text import decode

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32

# type id of a tensor -> (name, values a block, bytes a block)
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}
# Known by name only, for the message that refuses them. Some are no longer in the format.
OTHER_TYPES: Mapping[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    34: "TQ1_0",
    35: "TQ2_0",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
    39: "MXFP4",
    40: "NVFP4",
}
# type id of a metadata value -> numpy type
_NUMBERS: Mapping[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_LENGTH = struct.Struct("<Q")
# Smallest possible entries: key length, type, one byte; name length, dimension count, one dimension, type, offset.
_SMALLEST_ENTRY, _SMALLEST_TENSOR = 13, 32


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. `shape` is in the usual order: [rows, columns] (GGUF stores it reversed)."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the last dimension."""
        return self.nbytes // prod(self.shape[:-1])


class Cursor:
    """Reads the header front to back; every read is checked against the end of the file."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 0
        self.end = len(data)

    def fail(self, message: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {message}")

    def truncated(self, message: str) -> NoReturn:
        """Fail over something that the file is too short for."""
        self.fail(f"{message}. The file is cut short or damaged; download it again")

    def take(self, count: int, field: str) -> bytes:
        if count > self.end - self.position:
            self.truncated(f"{field}: {count} bytes at offset {self.position} end beyond the file's {self.end} bytes")
        start = self.position
        self.position += count
        return self.data[start : self.position]

    def unsigned(self, width: int, field: str) -> int:
        return int.from_bytes(self.take(width, field), "little")

    def string(self, field: str) -> str:
        return decode(self.take(self.unsigned(8, f"length of {field}"), field), self.path, field)

    def preamble(self) -> tuple[int, int]:
        """Magic, version and the two counts: (tensors, metadata entries)."""
        if self.take(4, "magic") != MAGIC:
            self.fail("not a GGUF file (it does not start with 'GGUF')")
        version = self.unsigned(4, "version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped <= 0xFFFF:
                self.fail(
                    f"a big-endian GGUF file (version {swapped}); only little-endian ones are read. "
                    "`gguf-convert-endian FILE little` of the gguf package converts it"
                )
            self.fail(f"GGUF version {version} is not supported; versions 2 and 3 are read. Convert the model again")
        tensors = self.unsigned(8, "tensor count")
        entries = self.unsigned(8, "metadata count")
        self._check_count("tensor count", tensors, _SMALLEST_TENSOR)
        self._check_count("metadata count", entries, _SMALLEST_ENTRY)
        return tensors, entries

    def entries(self, count: int) -> Iterator[tuple[str, Any]]:
        seen = set()
        for index in range(count):
            key = self.string(f"metadata key {index}")
            if key in seen:
                self.fail(f"metadata key '{key[:80]}' appears twice")
            seen.add(key)
            yield key, self._value(self.unsigned(4, f"type of '{key[:80]}'"), f"'{key[:80]}'")

    def tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        """All tensor entries, with offsets made absolute and checked for alignment, range and overlap."""
        raw = [self._tensor(index) for index in range(count)]
        base = -(-self.position // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for info in raw:
            if info.name in tensors:
                self.fail(f"tensor '{info.name}' appears twice")
            if info.offset % alignment:
                self.fail(f"tensor '{info.name}': offset {info.offset} is not a multiple of {alignment}")
            start = base + info.offset
            if start + info.nbytes > self.end:
                self.truncated(
                    f"tensor '{info.name}': offset {start} + {info.nbytes} bytes ends beyond "
                    f"the file's {self.end} bytes"
                )
            tensors[info.name] = TensorInfo(info.name, info.type, info.shape, start, info.nbytes)
        self._check_overlap(tensors)
        return tensors

    def _tensor(self, index: int) -> TensorInfo:
        name = self.string(f"name of tensor {index}")
        label = f"tensor '{name[:80]}'"
        dimensions = self.unsigned(4, f"{label}: dimension count")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self.fail(f"{label}: {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed")
        shape = tuple(self.unsigned(8, f"{label}: dimension {axis}") for axis in range(dimensions))[::-1]
        type_id = self.unsigned(4, f"{label}: type")
        offset = self.unsigned(8, f"{label}: offset")
        if type_id not in TENSOR_TYPES:
            known = ", ".join(entry[0] for entry in TENSOR_TYPES.values())
            self.fail(
                f"{label} has the type {_type_name(type_id)}, which is not read. Known types: {known}. Fetch the model "
                "in one of these, such as Q4_K_M, or convert it: `llama-quantize --allow-requantize FILE NEW Q4_K_M` "
                "of llama.cpp"
            )
        type_name, block, block_bytes = TENSOR_TYPES[type_id]
        values = prod(shape)
        if values == 0:
            self.fail(f"{label}: shape {list(shape)} has no elements")
        if shape[-1] % block:
            self.fail(f"{label}: rows of {shape[-1]} values are not a multiple of the {type_name} block of {block}")
        return TensorInfo(name, type_name, shape, offset, values // block * block_bytes)

    def _value(self, type_id: int, field: str) -> Any:
        if type_id == _STRING:
            return self.string(field)
        if type_id == _ARRAY:
            return self._array(field)
        if type_id == _BOOL:
            return bool(self._booleans(1, field)[0])
        return self._numbers(type_id, 1, field)[0].item()

    def _array(self, field: str) -> list[str] | npt.NDArray[Any]:
        type_id = self.unsigned(4, f"element type of {field}")
        count = self.unsigned(8, f"length of {field}")
        if type_id == _STRING:
            return self._strings(count, field)
        if type_id == _BOOL:
            return self._booleans(count, field)
        return self._numbers(type_id, count, field)

    def _numbers(self, type_id: int, count: int, field: str) -> npt.NDArray[Any]:
        if type_id not in _NUMBERS:
            self.fail(f"{field} has the metadata type {type_id}, which is not supported here")
        kind = np.dtype(_NUMBERS[type_id])
        return np.frombuffer(self.take(count * kind.itemsize, field), dtype=kind)

    def _booleans(self, count: int, field: str) -> npt.NDArray[np.bool_]:
        values = np.frombuffer(self.take(count, field), dtype=np.uint8)
        if np.any(values > 1):
            self.fail(f"{field}: {values.max()} is not a boolean (0 or 1)")
        return values.astype(np.bool_)

    def _strings(self, count: int, field: str) -> list[str]:
        self._check_count(f"length of {field}", count, _LENGTH.size)
        strings, data, position, end = [], self.data, self.position, self.end
        for index in range(count):
            body = position + _LENGTH.size
            if body > end or (stop := body + _LENGTH.unpack_from(data, position)[0]) > end:
                self.truncated(f"{field}[{index}] at offset {position} ends beyond the file's {end} bytes")
            strings.append(decode(data[body:stop], self.path, f"{field}[{index}]"))
            position = stop
        self.position = position
        return strings

    def _check_count(self, field: str, count: int, smallest: int) -> None:
        room = (self.end - self.position) // smallest
        if count > room:
            self.truncated(f"{field} is {count}, but the file's {self.end} bytes have room for {room} at most")

    def _check_overlap(self, tensors: dict[str, TensorInfo]) -> None:
        before: TensorInfo | None = None
        for info in sorted(tensors.values(), key=lambda item: item.offset):
            if before is not None and info.offset < before.offset + before.nbytes:
                self.fail(f"tensor '{info.name}' overlaps tensor '{before.name}' at offset {info.offset}")
            before = info


def _type_name(type_id: int) -> str:
    return f"{OTHER_TYPES[type_id]} ({type_id})" if type_id in OTHER_TYPES else str(type_id)
