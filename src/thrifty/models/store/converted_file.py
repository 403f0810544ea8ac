"""Writing the tensors of a converted checkpoint: a slice at a time, behind one another, each with a checksum."""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.arrays import Array
from thrifty.formats.gguf import ArrayShape
from thrifty.models.source import DType, SlicedLinear, SlicedWeight
from thrifty.models.store.checksums import Section
from thrifty.models.store.stored_weights import dtype_name

ALIGNMENT = 64
_PENDING = 2  # slices that are on their way to the disk while the next one is made
_PIECE = 32 << 20  # bytes of one write

Progress = Callable[[int, int], None]
"""Called with the bytes that are written and those that there will be; first with 0, before anything is written."""

Fits = Callable[[int], None]
"""Called with the bytes of all weights as they will be stored, before any is converted; raises where they do not do."""


class TensorWriter:
    """Fills a file with the arrays of weights. Holds the slices on their way to the disk, and no more."""

    def __init__(self, path: Path, total: int, progress: Progress | None) -> None:
        """total: bytes that will be written, as far as it is known; for `progress`."""
        self.sections: list[Section] = []
        self._path, self._total, self._progress = path, total, progress
        self._end = self._done = 0
        self._pending: deque[tuple[Future[None], int]] = deque()

    @contextmanager
    def opened(self) -> Iterator[TensorWriter]:
        """Within it, `write` works; when it ends without an error, everything is on the disk."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            with ThreadPoolExecutor(1, "writing") as self._pool:
                yield self
                while self._pending:
                    self._settle()
            os.fsync(self._file)
            _forget(self._file)
        finally:
            os.close(self._file)

    def write(self, weight: SlicedWeight) -> dict[str, Any]:
        """All of one weight. Returns its entry in the index. Raises what reading it raises, OSError."""
        value = weight.value
        if not isinstance(value, SlicedLinear):
            exact = value.astype(np.float32, copy=False)
            value = SlicedLinear({}, {"value": (exact.shape, exact.dtype)}, lambda: iter(({"value": exact},)))
        arrays = {
            name: _Array(f"{weight.name}/{name}", self._place(shape), *shape) for name, shape in value.arrays.items()
        }
        for slices in value.slices():
            for name, array in slices.items():
                self._put(arrays[name], array)
        while self._pending:  # checksums are whole only then
            self._settle()
        self.sections += [array.section(self._path.name) for array in arrays.values()]
        return {
            "name": weight.name,
            "meta": dict(value.meta) or None,
            "tensors": {name: array.place() for name, array in arrays.items()},
            "origin": weight.origin,
            "error": value.deviation.relative,
            "largest_error": value.deviation.largest,
        }

    def _place(self, shape: ArrayShape) -> int:
        """Where the next array of that shape starts."""
        start = -(-self._end // ALIGNMENT) * ALIGNMENT
        self._end = start + nbytes(shape)
        return start

    def _put(self, to: _Array, array: Array) -> None:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        for start in range(0, len(content), _PIECE):
            piece = content[start : start + _PIECE]
            if len(self._pending) >= _PENDING:
                self._settle()
            self._pending.append((self._pool.submit(to.store, self._file, piece), len(piece)))

    def _settle(self) -> None:
        """Wait for the oldest piece."""
        stored, count = self._pending.popleft()
        stored.result()
        self._done += count
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done))


class _Array:
    """One array on its way into the file."""

    def __init__(self, name: str, offset: int, shape: tuple[int, ...], dtype: DType) -> None:
        self.name, self.offset, self.shape, self.dtype = name, offset, shape, dtype
        self.written = self.crc32 = 0

    def store(self, file: int, content: memoryview) -> None:
        """Write what follows, and take it into the checksum."""
        self.crc32 = zlib.crc32(content, self.crc32)
        while content:
            count = os.pwrite(file, content, self.offset + self.written)
            self.written += count
            content = content[count:]

    def place(self) -> dict[str, Any]:
        """As the index has it."""
        return {"dtype": dtype_name(self.dtype), "shape": list(self.shape), "offset": self.offset}

    def section(self, file: str) -> Section:
        """Its checksum; all of it must have been written."""
        assert self.written == nbytes((self.shape, self.dtype)), self.name
        return Section(file, self.name, self.offset, self.written, self.crc32)


def nbytes(shape: ArrayShape) -> int:
    """Bytes of an array of that shape and type."""
    return prod(shape[0]) * shape[1].itemsize


def _forget(file: int) -> None:
    """Let the system drop what it keeps of a file on the disk: it keeps small pages, as they were written, and weights
    in these are read up to a third slower than in those that a mapping asks for.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
