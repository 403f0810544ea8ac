"""Safetensors files, with every number of the header checked against the file before a tensor is read by it.

Format: eight bytes of header length (little endian), a JSON header, the tensors' bytes without gaps.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from thrifty.arrays import BFLOAT16, Array
from thrifty.errors import CheckpointError
from thrifty.models.checked_text import parse_json

HEADER_LIMIT = 100_000_000  # bytes; the format's own bound
JSON_LIMIT = 64_000_000  # bytes of a config or an index
MAX_DIMENSIONS = 8
# Types that a weight may have. Others are allowed in a file, and refused where the decoder asks for them.
WEIGHT_TYPES: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16}
# Types of what a quantised linear is made of; FP8 as its bytes.
_CODE_TYPES: Mapping[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(np.uint8),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: its file, type ("BF16"), shape, and the byte of the file that it starts at."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in its file."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


class TensorReader:
    """Reads tensors of checked files as views of the mapped file.

    A file stays mapped for the next tensors, up to `span` bytes of them: what was read and dropped does not
    stay in the process's memory for long.
    """

    def __init__(self, span: int = 64 << 20) -> None:
        self.span = span
        self._path: Path | None = None
        self._map: mmap.mmap | None = None
        self._read = 0

    def read(self, entry: TensorEntry, part: int | None = None) -> Array:
        """The tensor, or its `part`-th slice along the first dimension; read-only, for as long as it is held.

        Raises CheckpointError naming the tensor where it is not F32, F16 or BF16, or the file cannot be read.
        """
        if entry.dtype not in WEIGHT_TYPES:
            known = ", ".join(WEIGHT_TYPES)
            raise CheckpointError(
                f"{entry.path}: tensor {entry.name!r} has type {entry.dtype}; expected one of {known}."
            )
        return self.codes(entry, part)

    def codes(self, entry: TensorEntry, part: int | None = None) -> Array:
        """As `read`, of the types that quantised linears are made of as well."""
        dtype = WEIGHT_TYPES.get(entry.dtype) or _CODE_TYPES.get(entry.dtype)
        if dtype is None:
            raise CheckpointError(f"{entry.path}: tensor {entry.name!r} has type {entry.dtype}, which is not read.")
        shape, start, nbytes = entry.shape, entry.offset, entry.nbytes
        if part is not None:
            nbytes, shape = nbytes // shape[0], shape[1:]
            start += part * nbytes
        try:
            content = np.frombuffer(self._mapped(entry.path), np.uint8, nbytes, start)
        except (OSError, ValueError) as error:  # ValueError: the file has become shorter
            raise CheckpointError(f"{entry.path}: tensor {entry.name!r} cannot be read: {error}.") from error
        self._read += nbytes
        if start % dtype.itemsize:  # the format does not align its tensors
            content = content.copy()
        return content.view(dtype).reshape(shape)

    def _mapped(self, path: Path) -> mmap.mmap:
        if self._map is None or self._path != path or self._read > self.span:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._path, self._read = path, 0
        return self._map


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """All tensors of one file, by name. Raises CheckpointError naming the field that does not fit the
    file.
    """
    header, base, size = _read_header(path)
    spans: list[tuple[int, int, str]] = []
    entries: dict[str, TensorEntry] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (start, stop) = _check_entry(path, name, entry, size)
        spans.append((start, stop, name))
        entries[name] = TensorEntry(path, name, dtype, shape, base + start)
    _check_spans(path, spans, size)
    return entries


def read_metadata(path: Path) -> Mapping[str, str]:
    """The texts in a file's header beside its tensors. Raises CheckpointError where the header is none."""
    header, _, _ = _read_header(path)
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, Mapping) or not all(isinstance(text, str) for text in metadata.values()):
        _fail(path, "__metadata__ is not a table of texts")
    return metadata


def read_json(path: Path, limit: int = JSON_LIMIT) -> Any:
    """The parsed file. Raises CheckpointError where it is missing, too large or not JSON."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise CheckpointError(f"{path} has {size} bytes; at most {limit} are read.")
        return _parse(path, path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error


def _parse(path: Path, text: bytes) -> Any:
    return parse_json(text, path, lambda pairs: _unique(path, pairs))


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise CheckpointError(f"{path}: the key {twice!r:.80} comes twice.")
    return table


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header's table, the byte that the data starts at, and the number of bytes from there on."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            if len(first) < 8:
                _fail(path, f"the file has {size} bytes; it must have at least 8")
            (length,) = struct.unpack("<Q", first)
            if length > min(size - 8, HEADER_LIMIT):
                _fail(path, f"the header length is {length}; at most {min(size - 8, HEADER_LIMIT)} fit")
            header = _parse(path, file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not isinstance(header, dict):
        _fail(path, "the header is not a table")
    return header, 8 + length, size - 8 - length


def _check_entry(path: Path, name: str, entry: object, size: int) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    label = f"tensor {name!r:.120}"
    if not isinstance(entry, Mapping):
        _fail(path, f"{label} is not a table")
    dtype, shape, offsets = (
        entry.get("dtype"),
        _counts(entry.get("shape")),
        _counts(entry.get("data_offsets")),
    )
    if not isinstance(dtype, str) or dtype not in BITS:
        _fail(path, f"{label}: dtype {dtype!r:.80} is unknown")
    if shape is None or len(shape) > MAX_DIMENSIONS:
        given = entry.get("shape")
        _fail(path, f"{label}: shape {given!r:.80} is not a list of at most {MAX_DIMENSIONS} sizes")
    if offsets is None or len(offsets) != 2:
        _fail(path, f"{label}: data_offsets {entry.get('data_offsets')!r:.80} is not a pair of offsets")
    start, stop = offsets
    if not start <= stop <= size:
        _fail(path, f"{label}: data_offsets {[start, stop]} leave the {size} bytes of data")
    bits = math.prod(shape) * BITS[dtype]
    if bits != (stop - start) * 8:
        given = f"data_offsets give it {stop - start}"
        _fail(path, f"{label}: shape {list(shape)!r:.80} of {dtype} needs {bits / 8:.0f} bytes; {given}")
    return dtype, shape, (start, stop)


def _counts(value: object) -> tuple[int, ...] | None:
    """A list of sizes or offsets as a tuple; None where it is anything else."""
    if not isinstance(value, list):
        return None
    if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 63 for item in value):
        return None
    return tuple(value)


def _check_spans(path: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    """The tensors must cover the data exactly once."""
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            kind = "overlaps the tensor before it" if start < end else "leaves a gap before it"
            _fail(path, f"tensor {name!r:.120}: data_offsets start at {start}, which {kind} (expected {end})")
        end = stop
    if end != size:
        _fail(path, f"the tensors end at byte {end} of {size} bytes of data")


def _fail(path: Path, reason: str) -> NoReturn:
    raise CheckpointError(f"{path} is not a valid safetensors file: {reason}. Download it again, or write it anew.")
