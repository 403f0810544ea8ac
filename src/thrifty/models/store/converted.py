"""The converted form of a checkpoint: packed tensors in their final layout, mapped into memory.

An entry of the cache (see `cache_entry`) with the file `weights.bin`, tensors 64-byte aligned, each with a checksum;
and one for all but the weights (see `description`).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from thrifty.errors import StorageError
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.description import Description, open_description
from thrifty.models.source import DType, Files, SlicedSource, SlicedWeight, Weight, stored_bytes
from thrifty.models.store.cache_directory import VARIABLE
from thrifty.models.store.cache_entry import CacheEntry, Contents, open_entry
from thrifty.models.store.checkpoint_key import CheckpointKey
from thrifty.models.store.converted_file import Fits, Progress, TensorWriter
from thrifty.models.store.stored_weights import read_weight
from thrifty.models.tokens.settings import TokenizerDefinition
from thrifty.storage.mapped_file import MappedFile

_LOG = logging.getLogger(__name__)
KIND = "converted"
FORMAT = 4
FILE = "weights.bin"
_SPARE = 16 << 20  # bytes of the disk that are left to others


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

    @cached_property
    def file(self) -> MappedFile:
        """The file that all arrays are views of."""
        return MappedFile(self.entry.path / FILE)

    def weights(self, dtype: DType | None = None) -> Iterator[Weight]:
        """Every part, as views of the mapped file: nothing is read before it is used. Norms and biases are copies."""
        if dtype is not None:
            raise ValueError("a converted checkpoint holds packed forms only; read the original for plain ones")
        data = self.file.content
        for entry in self.entry.body["weights"]:
            yield read_weight(entry, data, FILE)


def open_converted(
    key: CheckpointKey,
    make_source: Callable[[], Files],
    progress: Progress | None = None,
    fits: Fits | None = None,
) -> Converted:
    """The converted form of a checkpoint, made now from `make_source()` where there is none yet or it is damaged.

    progress: told how far that is. fits: asked before that begins, see `Fits`. Raises CheckpointError for a bad
    checkpoint, StorageError where the cache cannot be written or has no room. See `open_entry`.
    """
    source = cache(make_source)  # opened once at most, by whichever of the two is missing
    description = open_description(key.description, source)

    def write(directory: Path) -> Contents:
        if fits is not None:
            fits(stored_bytes(source()))
        return _write(directory, source(), progress)

    return Converted(open_entry(KIND, key.weights, FORMAT, write), description)


def _write(directory: Path, source: Files, progress: Progress | None) -> Contents:
    total = stored_bytes(source)
    weights = source.sliced() if isinstance(source, SlicedSource) else map(SlicedWeight.of, source.weights())
    _check_room(directory, total)
    _LOG.info("writing a converted copy of %.0f MB below %s", total / 1e6, directory.parent)
    if progress is not None:
        progress(0, total)
    writer = TensorWriter(directory / FILE, total, progress)
    with writer.opened():
        entries = [writer.write(weight) for weight in weights]
    return Contents({"weights": entries}, writer.sections)


def _check_room(directory: Path, total: int) -> None:
    """Raise StorageError where the disk has no room for so many bytes and what comes with them."""
    free = shutil.disk_usage(directory).free
    if free < total + _SPARE:
        raise StorageError(
            f"{directory.parent}: the converted copy takes {total / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free. "
            f"Make room there, set {VARIABLE} to another directory, or load with copy=False (--no-copy), which keeps "
            "none."
        )
