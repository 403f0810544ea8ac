"""The converted form of a checkpoint: packed tensors in their final layout, mapped into memory.

An entry of the cache (see `cache_entry`) with the file `weights.bin`, tensors 64-byte aligned, each with a checksum;
and one for all but the weights (see `description`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from thrifty.arrays import BFLOAT16, Array, Bytes
from thrifty.errors import CheckpointError
from thrifty.formats.linear import PackedLinear
from thrifty.models.cache_entry import CacheEntry, Contents, finish, open_entry
from thrifty.models.checkpoint_key import CheckpointKey
from thrifty.models.checksums import Section
from thrifty.models.config import ModelConfig
from thrifty.models.description import Description, open_description
from thrifty.models.source import DType, Source, Weight
from thrifty.models.tokenizer_settings import TokenizerDefinition

KIND = "converted"
FORMAT = 2
FILE = "weights.bin"
ALIGNMENT = 64
DTYPES: Mapping[str, DType] = {
    "u8": np.dtype(np.uint8),
    "f16": np.dtype("<f2"),
    "bf16": BFLOAT16,
    "f32": np.dtype("<f4"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Converted:
    """An opened converted checkpoint. Satisfies `source.Source` for dtype None; its arrays are views of the file."""

    entry: CacheEntry
    description: Description

    @property
    def config(self) -> ModelConfig:
        return self.description.config

    @property
    def tokenizer(self) -> TokenizerDefinition | None:
        """The tokenizer; its definition is read when this is called."""
        return self.description.tokenizer

    def weights(self, dtype: DType | None = None) -> Iterator[Weight]:
        """Every part, as views of the mapped file: nothing is read before it is used. Norms and biases are copies."""
        if dtype is not None:
            raise ValueError("a converted checkpoint holds packed forms only; read the original for plain ones")
        data = _map(self.entry.path / FILE)
        for entry in self.entry.body["weights"]:
            arrays = {name: _view(data, place, entry["name"]) for name, place in entry["tensors"].items()}
            value = PackedLinear.from_state(entry["meta"], arrays) if entry["meta"] else arrays["value"].copy()
            yield Weight(entry["name"], value, entry["origin"], entry["error"], entry["largest_error"])


def open_converted(key: CheckpointKey, make_source: Callable[[], Source]) -> Converted:
    """The converted form of a checkpoint, made now from `make_source()` where there is none yet or it is damaged.

    Raises CheckpointError for a bad checkpoint, StorageError where the cache cannot be written. See `open_entry`.
    """
    source = cache(make_source)  # opened once at most, by whichever of the two is missing
    description = open_description(key.description, source)
    return Converted(open_entry(KIND, key.weights, FORMAT, lambda directory: _write(directory, source())), description)


def _write(directory: Path, source: Source) -> Contents:
    sections: list[Section] = []
    with (directory / FILE).open("wb") as file:
        entries = [_write_weight(file, weight, sections) for weight in source.weights()]
        finish(file)
        _forget(file)
    return Contents({"weights": entries}, sections)


def _forget(file: BinaryIO) -> None:
    """Let the system drop what it keeps of a file on the disk: it keeps small pages, as they were written, and weights
    in these are read up to a third slower than in those that `_map` asks for.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write_weight(file: BinaryIO, weight: Weight, sections: list[Section]) -> dict[str, Any]:
    value = weight.value
    if isinstance(value, PackedLinear):
        meta, arrays = value.meta(), value.state()
    else:
        meta, arrays = None, {"value": value.astype(np.float32, copy=False)}
    places = {}
    for name, array in arrays.items():
        section = _write_array(file, array, f"{weight.name}/{name}")
        sections.append(section)
        places[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "offset": section.offset}
    return {
        "name": weight.name,
        "meta": meta,
        "tensors": places,
        "origin": weight.origin,
        "error": weight.error,
        "largest_error": weight.largest_error,
    }


def _write_array(file: BinaryIO, array: Array, name: str) -> Section:
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    offset = file.tell()
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    file.write(content)
    return Section(FILE, name, offset, content.nbytes, zlib.crc32(content))


def _map(path: Path) -> Bytes:
    """The whole file as uint8 [bytes], mapped privately: pages come when they are touched."""
    with path.open("rb") as file:
        # Copy-on-write, so that a stray in-place operation cannot crash the process or reach the file.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # where the file is read from the disk, in pieces that make large pages
            with contextlib.suppress(OSError):  # kernels without them
                mapped.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(mapped, np.uint8)


def _view(data: Bytes, place: Mapping[str, Any], name: str) -> Array:
    dtype, shape, start = DTYPES[place["dtype"]], place["shape"], place["offset"]
    stop = start + prod(shape) * dtype.itemsize
    if not 0 <= start <= stop <= len(data):
        raise CheckpointError(f"weights.bin: '{name}' ends beyond the file")
    return data[start:stop].view(dtype).reshape(shape)
