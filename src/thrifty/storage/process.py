"""The process as the system counts it: bytes that are in memory, interpreter and libraries included."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Array

STATUS = Path("/proc/self/status")
PAGES = Path("/proc/self/pagemap")
PRESENT, OF_A_FILE = 63, 61  # bits of a page's entry in pagemap (proc(5)); a page that was written to is of no file
AT_ONCE = 1 << 16  # pages that are asked for together


def resident() -> int:
    """Bytes of the process in memory now, memory-mapped weights that were touched included."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_resident() -> int:
    """The highest resident bytes since the process started, or since the system's counter was last reset."""
    return _status("VmHWM") or resident()


def resident_of(arrays: Iterable[Array]) -> int:
    """Bytes of whole pages, those of contiguous `arrays`, that this process has in memory now; 0 where the system does
    not tell. Memory-mapped arrays are there before anyone reads them where the system maps large pages.
    """
    pages = 0
    try:
        with PAGES.open("rb", buffering=0) as file:
            for first, last in _spans(arrays, inside=False):
                pages += sum(int(_flag(states, PRESENT).sum()) for _, states in _states(file, first, last))
    except OSError:
        return 0
    return pages * mmap.PAGESIZE


def let_go(arrays: Iterable[Array]) -> int:
    """Take pages of contiguous `arrays` that are mapped from a file out of this process: they stay in the system's
    cache and come back when they are touched. Returns the bytes. Memory of other kinds is left alone, and pages that
    were written to; so is all where the system does not tell.
    """
    gone = 0
    advise = getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
    if advise is None or not hasattr(mmap, "MADV_DONTNEED"):
        return 0
    try:
        with PAGES.open("rb", buffering=0) as file:
            for first, last in _spans(arrays, inside=True):
                for start, stop in _mapped(file, first, last):
                    place, size = start * mmap.PAGESIZE, (stop - start) * mmap.PAGESIZE
                    if advise(ctypes.c_void_p(place), ctypes.c_size_t(size), mmap.MADV_DONTNEED) == 0:
                        gone += size
    except OSError:
        return gone
    return gone


def _spans(arrays: Iterable[Array], inside: bool) -> Iterator[tuple[int, int]]:
    """Ranges of page numbers (the last one excluded), ascending, that arrays touch; inside: those that they fill."""
    spans = sorted((array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays if array.nbytes)
    behind = 0
    for start, stop in _joined(spans) if inside else spans:
        first = -(-start // mmap.PAGESIZE) if inside else start // mmap.PAGESIZE
        last = stop // mmap.PAGESIZE if inside else -(-stop // mmap.PAGESIZE)
        first = max(first, behind)
        if last > first:
            behind = last
            yield first, last


def _joined(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ascending spans of addresses, those that follow one another within a few bytes (of alignment) as one."""
    held: tuple[int, int] | None = None
    for start, stop in spans:
        if held is not None and start - held[1] < mmap.PAGESIZE // 8:
            held = held[0], max(held[1], stop)
            continue
        if held is not None:
            yield held
        held = start, stop
    if held is not None:
        yield held


def _states(file: FileIO, first: int, last: int) -> Iterator[tuple[int, npt.NDArray[np.uint64]]]:
    """(number of the first page, entries of pagemap) for the pages first..last-1, some at a time."""
    for start in range(first, last, AT_ONCE):
        count = min(AT_ONCE, last - start)
        file.seek(8 * start)
        yield start, np.frombuffer(file.read(8 * count), "<u8")


def _flag(states: npt.NDArray[np.uint64], bit: int) -> npt.NDArray[np.bool_]:
    return (states >> np.uint64(bit) & np.uint64(1)).astype(np.bool_)


def _mapped(file: FileIO, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Runs of pages, among first..last-1, that are in memory and of a file."""
    for start, states in _states(file, first, last):
        held = np.concatenate(([False], _flag(states, PRESENT) & _flag(states, OF_A_FILE), [False]))
        edges = np.flatnonzero(held[1:] != held[:-1]).reshape(-1, 2)
        yield from ((start + int(begin), start + int(end)) for begin, end in edges)


def _status(field: str) -> int | None:
    try:
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
