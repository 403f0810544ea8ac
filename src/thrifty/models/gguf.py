"""A strict reader of GGUF headers (versions 2 and 3, little endian).

The file is mapped, never read whole. Every count, length, dimension and offset is checked against the file's size
before anything is allocated, so that a hostile file costs at most a small multiple of its own size and ends in a
CheckpointError that names the field. Format: the GGUF specification of the ggml project.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from thrifty.errors import CheckpointError

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
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
# Known by name only, for the message that refuses them.
OTHER_TYPES: Mapping[int, str] = {
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
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

T = TypeVar("T")


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


class GGUF:
    """An open GGUF file: `metadata`, `tensors` by name, and the bytes of each tensor as views of the mapping.

    Raises CheckpointError for anything in the header that does not add up.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._map = _map_file(self.path)
        cursor = _Cursor(self._map, self.path)
        tensors, entries = cursor.preamble()
        self.metadata = Metadata(self.path, dict(cursor.entries(entries)))
        alignment = self.metadata.integer("general.alignment", DEFAULT_ALIGNMENT, minimum=8, maximum=1 << 20)
        if alignment & (alignment - 1):
            cursor.fail(f"'general.alignment' is {alignment}, not a power of two")
        self.tensors = cursor.tensors(tensors, alignment)

    @property
    def architecture(self) -> str:
        """`general.architecture`, such as "llama"."""
        return self.metadata.text("general.architecture")

    def rows(self, name: str) -> npt.NDArray[np.uint8]:
        """The raw bytes of a tensor as [rows, row_bytes] uint8, a read-only view of the mapped file.

        All dimensions but the last are folded into rows. Raises CheckpointError where there is no such tensor.
        """
        info = self.tensor(name)
        flat = np.frombuffer(self._map, dtype=np.uint8, count=info.nbytes, offset=info.offset)
        return flat.reshape(-1, info.row_bytes)

    def tensor(self, name: str) -> TensorInfo:
        """The entry of one tensor. Raises CheckpointError where it is missing."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: tensor '{name}' is missing")
        return self.tensors[name]

    def forget(self, name: str) -> None:
        """Tell the system that the pages of a tensor are not needed again soon, so that they leave the process."""
        info = self.tensor(name)
        start = info.offset - info.offset % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)


class Metadata(Mapping[str, Any]):
    """The key-value part of the header, with getters that check type and range.

    Values are str, int, float, bool, `list[str]` or a one-dimensional numpy array.
    """

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self._values = values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def integer(self, key: str, default: int | None = None, *, minimum: int = 0, maximum: int = 2**31 - 1) -> int:
        """An integer within [minimum, maximum]; CheckpointError where it is missing without default, or is not one."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong(key, value, "an integer")
        if not minimum <= value <= maximum:
            raise CheckpointError(f"{self.path}: '{key}' is {value}; it must lie between {minimum} and {maximum}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = -np.inf) -> float:
        """A finite number greater than `above`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._wrong(key, value, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = np.inf
        if not np.isfinite(number) or number <= above:
            raise CheckpointError(f"{self.path}: '{key}' is {value}; it must be finite and above {above:g}")
        return number

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            self._wrong(key, value, "a string")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """A boolean."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            self._wrong(key, value, "a boolean")
        return value

    def texts(self, key: str) -> list[str]:
        """An array of strings."""
        value = self._get(key, None)
        if not isinstance(value, list):
            self._wrong(key, value, "an array of strings")
        return value

    def numbers(self, key: str, length: int) -> npt.NDArray[Any]:
        """A numeric array of exactly `length` values."""
        value = self._get(key, None)
        if not isinstance(value, np.ndarray):
            self._wrong(key, value, "an array of numbers")
        if len(value) != length:
            raise CheckpointError(f"{self.path}: '{key}' has {len(value)} values; {length} are needed")
        return value

    def integers(self, key: str, length: int) -> list[int]:
        """An array of exactly `length` integers, of whatever width."""
        value = self.numbers(key, length)
        if value.dtype.kind not in "iu":
            self._wrong(key, value, "an array of integers")
        return [int(item) for item in value]

    def _get(self, key: str, default: T | None) -> Any:
        if key not in self._values and default is None:
            raise CheckpointError(f"{self.path}: the metadata field '{key}' is missing")
        return self._values.get(key, default)

    def _wrong(self, key: str, value: Any, expected: str) -> NoReturn:
        shown = repr(value) if isinstance(value, (str, int, float, bool)) else f"an array of {len(value)}"
        raise CheckpointError(f"{self.path}: '{key}' must be {expected}, not {shown[:80]}")


def _map_file(path: Path) -> mmap.mmap:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                raise CheckpointError(f"{path}: {size} bytes is too short for a GGUF header (24 bytes)")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error


class _Cursor:
    """Reads the header front to back; every read is checked against the end of the file."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 0
        self.end = len(data)

    def fail(self, message: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {message}")

    def take(self, count: int, field: str) -> bytes:
        if count > self.end - self.position:
            self.fail(f"{field}: {count} bytes at offset {self.position} end beyond the file's {self.end} bytes")
        start = self.position
        self.position += count
        return self.data[start : self.position]

    def unsigned(self, width: int, field: str) -> int:
        return int.from_bytes(self.take(width, field), "little")

    def string(self, field: str) -> str:
        return self._decode(self.take(self.unsigned(8, f"length of {field}"), field), field)

    def preamble(self) -> tuple[int, int]:
        """Magic, version and the two counts: (tensors, metadata entries)."""
        if self.take(4, "magic") != MAGIC:
            self.fail("not a GGUF file (it does not start with 'GGUF')")
        version = self.unsigned(4, "version")
        if version not in VERSIONS:
            kind = "big-endian; convert it to little endian" if version & 0xFFFF == 0 and version else "not supported"
            self.fail(f"GGUF version {version} is {kind}; versions 2 and 3 (little endian) are read")
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
        found: dict[str, TensorInfo] = {}
        for info in raw:
            if info.name in found:
                self.fail(f"tensor '{info.name}' appears twice")
            if info.offset % alignment:
                self.fail(f"tensor '{info.name}': offset {info.offset} is not a multiple of {alignment}")
            start = base + info.offset
            if start + info.nbytes > self.end:
                self.fail(
                    f"tensor '{info.name}': offset {start} + {info.nbytes} bytes ends beyond "
                    f"the file's {self.end} bytes"
                )
            found[info.name] = TensorInfo(info.name, info.type, info.shape, start, info.nbytes)
        self._check_overlap(found)
        return found

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
            self.fail(f"{label} has the type {_type_name(type_id)}, which is not supported. Known types: {known}")
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
        found, data, position, end = [], self.data, self.position, self.end
        for index in range(count):
            body = position + _LENGTH.size
            if body > end or (stop := body + _LENGTH.unpack_from(data, position)[0]) > end:
                self.fail(f"{field}[{index}] at offset {position} ends beyond the file's {end} bytes")
            found.append(self._decode(data[body:stop], field))
            position = stop
        self.position = position
        return found

    def _decode(self, raw: bytes, field: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"{field} is not valid UTF-8 ({error.reason} at byte {error.start})")

    def _check_count(self, field: str, count: int, smallest: int) -> None:
        room = (self.end - self.position) // smallest
        if count > room:
            self.fail(f"{field} is {count}, but the file's {self.end} bytes have room for {room} at most")

    def _check_overlap(self, tensors: dict[str, TensorInfo]) -> None:
        before: TensorInfo | None = None
        for info in sorted(tensors.values(), key=lambda item: item.offset):
            if before is not None and info.offset < before.offset + before.nbytes:
                self.fail(f"tensor '{info.name}' overlaps tensor '{before.name}' at offset {info.offset}")
            before = info


def _type_name(type_id: int) -> str:
    return f"{OTHER_TYPES[type_id]} ({type_id})" if type_id in OTHER_TYPES else str(type_id)
