"""The process as the system counts it: bytes that are in memory, interpreter and libraries included."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

import numpy as np

from thrifty.arrays import Array

STATUS = Path("/proc/self/status")
PAGES = Path("/proc/self/pagemap")


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
    spans = sorted((array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays if array.nbytes)
    pages, behind = 0, 0
    try:
        with PAGES.open("rb", buffering=0) as file:
            for start, stop in spans:
                first, last = max(start // mmap.PAGESIZE, behind), -(-stop // mmap.PAGESIZE)
                if last > first:
                    pages, behind = pages + _present(file, first, last), last
    except OSError:
        return 0
    return pages * mmap.PAGESIZE


def _present(file: FileIO, first: int, last: int) -> int:
    """How many of the pages first..last-1 are in memory: the highest bit of the 8 bytes of each (proc(5))."""
    file.seek(8 * first)
    return int((np.frombuffer(file.read(8 * (last - first)), "<u8") >> np.uint64(63)).sum())


def _status(field: str) -> int | None:
    try:
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
