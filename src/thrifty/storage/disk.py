"""The disk tier: one unlinked file of extents. Nothing is left behind, even after a kill."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from thrifty.arrays import Bytes
from thrifty.errors import StorageError
from thrifty.storage.budget import format_size
from thrifty.storage.extents import Extents

_GRAIN = 4096


@dataclass(frozen=True)
class Extent:
    """A range of the disk tier's file. nbytes: what was written."""

    start: int
    nbytes: int


class DiskTier:
    """Bytes on disk, in a file without a name inside `folder` (the system's temporary folder by default).

    capacity: at most this many bytes. Methods may be called from any thread.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, capacity: int = 1 << 40) -> None:
        place = Path(folder) if folder is not None else Path(tempfile.gettempdir())
        try:
            self._file = tempfile.TemporaryFile(dir=place, prefix="thrifty-", buffering=0)  # noqa: SIM115 - kept open
        except OSError as error:
            raise StorageError(f"cannot open the disk tier in '{place}': {error}. Give a writable folder") from error
        self.folder = place
        self.capacity = capacity
        self._extents = Extents(-(-capacity // _GRAIN) * _GRAIN, _GRAIN)
        self._lock = threading.RLock()

    @property
    def used(self) -> int:
        """Bytes in extents."""
        return self._extents.used

    def write(self, data: Bytes) -> Extent:
        """Store a contiguous uint8 array. On any failure the extent is taken back and StorageError raised:
        the caller still holds the only copy and must keep it.
        """
        extent = self.take(data.nbytes)
        try:
            self.put(extent, data)
        except BaseException:
            self.free(extent)
            raise
        return extent

    def take(self, nbytes: int) -> Extent:
        """Room for `nbytes` bytes, which `put` fills. Raises StorageError where there is none."""
        with self._lock:
            start = self._extents.take(nbytes)
        if start is None:
            raise StorageError(
                f"the disk tier is full: {format_size(self.used)} of {format_size(self.capacity)} are used and "
                f"{format_size(nbytes)} do not fit. Give it more room or another folder than '{self.folder}'"
            )
        return Extent(start, nbytes)

    def put(self, extent: Extent, data: Bytes, offset: int = 0) -> None:
        """Write a contiguous uint8 array at `offset` bytes inside an extent. Raises StorageError."""
        view = data.data
        try:
            self._write_all(view, extent.start + offset)
        except OSError as error:
            raise StorageError(
                f"cannot write {format_size(len(view))} to the disk tier in '{self.folder}': {error}. "
                "Nothing was lost; free some space or give another folder"
            ) from error

    def read(self, extent: Extent, into: Bytes, offset: int = 0) -> None:
        """Fill `into` (contiguous uint8) from `offset` bytes inside an extent. Raises StorageError."""
        view = into.data[: extent.nbytes - offset]
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._file.fileno(), [view[done:]], extent.start + offset + done)
            except OSError as error:
                raise StorageError(f"cannot read from the disk tier in '{self.folder}': {error}") from error
            if count == 0:
                raise StorageError(f"the disk tier in '{self.folder}' ends early: its file was cut short")
            done += count

    def free(self, extent: Extent) -> None:
        """Give an extent back; the file shrinks when nothing is left in it. Allowed after `close`."""
        with self._lock:
            self._extents.give(extent.start, extent.nbytes)
            if self._extents.used == 0 and not self._file.closed:
                os.ftruncate(self._file.fileno(), 0)

    def reclaim(self, extents: Iterable[Extent]) -> None:
        """Only these are in use: all others are free."""
        with self._lock:
            taken = [(extent.start, extent.nbytes) for extent in extents]
            self._extents = Extents(self._extents.size, _GRAIN, taken)

    def close(self) -> None:
        """Close the file; its bytes are gone."""
        self._file.close()

    def _write_all(self, view: memoryview, start: int) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self._file.fileno(), view[done:], start + done)
