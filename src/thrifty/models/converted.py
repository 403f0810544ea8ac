"""The converted form of a checkpoint: packed tensors in their final layout, mapped into memory.

One directory a checkpoint, named after its content, in the user's cache: `weights.bin` (the tensors, 64-byte aligned),
`tokenizer.json`, and `index.json` (config, settings and the place of every tensor, behind a checksum of itself). It
appears by a rename when all of it is on disk, so whatever moment a process is killed at, there is nothing or the whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from thrifty.errors import CheckpointError, ThriftyError
from thrifty.formats.linear import PackedLinear
from thrifty.models import cache_directory as cache
from thrifty.models.config import ModelConfig, as_dict, from_dict
from thrifty.models.source import Source, Weight
from thrifty.models.tokenizer_settings import TokenizerDefinition, TokenizerSettings

FORMAT = 2
ALIGNMENT = 64
DTYPES: Mapping[str, torch.dtype] = {
    "u8": torch.uint8,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Converted:
    """An opened converted checkpoint. Satisfies `source.Source` for dtype None; its tensors are views of the file."""

    path: Path
    index: Mapping[str, Any]
    key: str

    @cached_property
    def config(self) -> ModelConfig:
        return from_dict(self.index["config"])

    @property
    def settings(self) -> TokenizerSettings | None:
        """The tokenizer's settings, or None for a checkpoint without a tokenizer."""
        data = self.index["tokenizer"]
        return None if data is None else TokenizerSettings.from_json(data)

    @property
    def tokenizer(self) -> TokenizerDefinition | None:
        """The tokenizer; its definition is read when this is called."""
        settings = self.settings
        return None if settings is None else TokenizerDefinition(self.definition(), settings)

    def definition(self) -> str:
        """The text of the tokenizer.json. Raises CheckpointError where the file is damaged."""
        try:
            raw = (self.path / "tokenizer.json").read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self.path}: tokenizer.json cannot be read: {error.strerror}") from error
        if hashlib.sha256(raw).hexdigest() != self.index["tokenizer_checksum"]:
            raise CheckpointError(f"{self.path}: tokenizer.json is damaged; remove the directory to convert again")
        return raw.decode("utf-8")

    def weights(self, dtype: torch.dtype | None = None) -> Iterator[Weight]:
        """Every part, as views of the mapped file: nothing is read before it is used. Norms and biases are copies."""
        if dtype is not None:
            raise ValueError("a converted checkpoint holds packed forms only; read the original for plain ones")
        data = _map(self.path / "weights.bin")
        for entry in self.index["weights"]:
            tensors = {name: _view(data, place, entry["name"]) for name, place in entry["tensors"].items()}
            value = PackedLinear.from_state(entry["meta"], tensors) if entry["meta"] else tensors["value"].clone()
            yield Weight(entry["name"], value, entry["origin"], entry["error"], entry["largest_error"])


def open_converted(key: str, make_source: Callable[[], Source]) -> Converted:
    """The converted form for a content key, converted now from `make_source()` where there is none yet.

    Two processes that convert at once take turns, and the second finds the work done. A damaged form is converted
    again, with a message. Raises CheckpointError for a bad checkpoint, StorageError where the cache cannot be written.
    """
    root = cache.cache_directory() / "converted"
    final = root / f"{key[:32]}-{FORMAT}"
    if (found := _read(final, key)) is not None:
        return found
    with cache.locked(root / f".{final.name}.lock"):
        if (found := _read(final, key)) is not None:
            return found
        _sweep(root)
        partial = root / f".{final.name}.partial"
        try:
            with cache.storage_errors(root):
                cache.remove(partial)
                cache.remove(root / f".{final.name}.old")
                partial.mkdir()
                _write(partial, make_source(), key)
                cache.publish(partial, final)
        finally:
            cache.remove(partial)
    converted = _read(final, key)
    if converted is None:
        raise CheckpointError(f"{final}: the converted form could not be read back; check the disk")
    return converted


def _sweep(root: Path) -> None:
    """Remove what killed conversions of other checkpoints left, where nobody is working on them."""
    import fcntl

    for partial in root.glob(".*.partial"):
        handle = os.open(root / f"{partial.name.removesuffix('.partial')}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            cache.remove(partial)
        except BlockingIOError:
            continue
        finally:
            os.close(handle)


def _write(directory: Path, source: Source, key: str) -> None:
    with (directory / "weights.bin").open("wb") as file:
        entries = [_write_weight(file, weight) for weight in source.weights()]
        size = file.tell()
        file.flush()
        os.fsync(file.fileno())
    tokenizer = source.tokenizer
    definition = b"" if tokenizer is None else tokenizer.definition.encode("utf-8")
    index = {
        "format": FORMAT,
        "key": key,
        "config": as_dict(source.config),
        "tokenizer": None if tokenizer is None else tokenizer.settings.to_json(),
        "tokenizer_checksum": hashlib.sha256(definition).hexdigest(),
        "tokenizer_bytes": len(definition),
        "weights_bytes": size,
        "weights": entries,
    }
    body = json.dumps(index, ensure_ascii=False).encode("utf-8")
    _write_file(directory / "tokenizer.json", definition)
    _write_file(directory / "index.json", hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    cache.sync(directory)


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_weight(file: BinaryIO, weight: Weight) -> dict[str, Any]:
    value = weight.value
    if isinstance(value, PackedLinear):
        meta, tensors = value.meta(), value.state()
    else:
        meta, tensors = None, {"value": value.float()}
    return {
        "name": weight.name,
        "meta": meta,
        "tensors": {name: _write_tensor(file, tensor) for name, tensor in tensors.items()},
        "origin": weight.origin,
        "error": weight.error,
        "largest_error": weight.largest_error,
    }


def _write_tensor(file: BinaryIO, tensor: torch.Tensor) -> dict[str, Any]:
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    offset = file.tell()
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    file.write(flat.numpy().data)
    return {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "offset": offset}


def _read(path: Path, key: str) -> Converted | None:
    """The converted form at `path`, or None where there is none or it is damaged (said in a message)."""
    try:
        raw = (path / "index.json").read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _LOG.warning("%s cannot be read (%s): converting again", path, error.strerror)
        return None
    try:
        index = _checked_index(raw, key)
        for name, field in (("weights.bin", "weights_bytes"), ("tokenizer.json", "tokenizer_bytes")):
            if (path / name).stat().st_size != index[field]:
                raise CheckpointError(f"{name} has a wrong size")
        return Converted(path, index, key)
    except (ThriftyError, OSError, ValueError, KeyError) as error:
        _LOG.warning("%s is damaged (%s): converting again", path, error)
        return None


def _checked_index(raw: bytes, key: str) -> dict[str, Any]:
    checksum, _, body = raw.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise CheckpointError("the checksum of index.json does not fit")
    index: dict[str, Any] = json.loads(body)
    if index["format"] != FORMAT or index["key"] != key:
        raise CheckpointError("index.json belongs to another checkpoint or format")
    return index


def _map(path: Path) -> torch.Tensor:
    """The whole file as uint8 [bytes], mapped privately: pages come when they are touched."""
    with path.open("rb") as file:
        # Copy-on-write, so that a stray in-place operation cannot crash the process or reach the file.
        return torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)


def _view(data: torch.Tensor, place: Mapping[str, Any], name: str) -> torch.Tensor:
    dtype, shape, start = DTYPES[place["dtype"]], place["shape"], place["offset"]
    stop = start + prod(shape) * dtype.itemsize
    if not 0 <= start <= stop <= len(data):
        raise CheckpointError(f"weights.bin: '{name}' ends beyond the file")
    return data[start:stop].view(dtype).view(shape)
