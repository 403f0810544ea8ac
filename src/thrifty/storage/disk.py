"""The disk tier: one unlinked file of extents. Nothing is left behind, even after a kill.

Where the file system allows it, what steps read again and again (`descriptor`) passes the page cache by (O_DIRECT);
where it does not, the page cache is told to forget what was read. `direct` says which.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from thrifty.arrays import Bytes
from thrifty.errors import StorageError
from thrifty.storage.budget import format_size
from thrifty.storage.extents import Extents

BLOCK = 4096
"""Extents begin at multiples of this many bytes; direct reads are of whole blocks."""


@dataclass(frozen=True)
class Extent:
    """A range of the disk tier's file. nbytes: what was written."""

    start: int
    nbytes: int


class DiskTier:
    """Bytes on disk, in a file without a name inside `folder` (the system's temporary folder by default).

    capacity: at most this many bytes. read_bytes, written_bytes: so far, those that `count_read` was told of included.
    Methods may be called from any thread.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, capacity: int = 1 << 40) -> None:
        place = Path(folder) if folder is not None else Path(tempfile.gettempdir())
        try:
            self._file = tempfile.TemporaryFile(dir=place, prefix="thrifty-", buffering=0)  # noqa: SIM115 - kept open
        except OSError as error:
            raise StorageError(f"cannot open the disk tier in '{place}': {error}. Give a writable folder") from error
        self.folder = place
        self.capacity = capacity
        self._extents = Extents(-(-capacity // BLOCK) * BLOCK, BLOCK)
        self._lock = threading.RLock()
        self.read_bytes = self.written_bytes = 0
        self._direct: FileIO | None = None
        self._tried = False

    @property
    def direct(self) -> bool:
        """Whether reads by `descriptor` pass the page cache by; False until it was asked for."""
        return self._direct is not None

    @property
    def descriptor(self) -> int:
        """Of the file, for reads by others: of whole blocks, into memory at whole blocks, where it is `direct`."""
        with self._lock:
            if not self._tried:
                self._tried, self._direct = True, _opened_directly(self._file.fileno())
            return (self._file if self._direct is None else self._direct).fileno()

    def count_read(self, nbytes: int) -> None:
        """Others read so many bytes by `descriptor`."""
        self.read_bytes += nbytes

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
        self.read_bytes += done

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
            self._extents = Extents(self._extents.size, BLOCK, taken)

    def close(self) -> None:
        """Close the file; its bytes are gone."""
        direct, self._direct = self._direct, None
        if direct is not None:
            direct.close()
        self._file.close()

    def _write_all(self, view: memoryview, start: int) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self._file.fileno(), view[done:], start + done)
        self.written_bytes += done


def _opened_directly(descriptor: int) -> FileIO | None:
    """The same file opened once more, past the page cache; None where the system or file system has none."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return FileIO(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return None


def described(disk: DiskTier | None) -> dict[str, int | bool]:
    """JSON-ready: what a disk tier holds, and what was read and written so far; zeros where there is none."""
    if disk is None:
        return {"disk": 0, "disk_read": 0, "disk_written": 0, "disk_direct": False}
    return {
        "disk": disk.used,
        "disk_read": disk.read_bytes,
        "disk_written": disk.written_bytes,
        "disk_direct": disk.direct,
    }
