"""A reserved range of address space whose pages take memory once written and are really given back."""

from __future__ import annotations

import contextlib
import ctypes
import mmap

import numpy as np

from thrifty.arrays import Bytes
from thrifty.errors import StorageError
from thrifty.storage.address_space import granted, machine_memory
from thrifty.storage.budget import format_size

_MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.13
_SHARE = 4
_LOOK = 1 << 18  # pages whose state is asked for at a time


class Mapping:
    """Anonymous memory that is reserved without being committed; zero-filled wherever it is first touched."""

    def __init__(self, nbytes: int, needed: int | None = None) -> None:
        """Whole pages of `nbytes`, or of less where the system grants less, but at least `needed` (default: all).

        Under a limit a quarter of what is left is taken where that will do: the rest is for other mappings. Raises
        StorageError where the system refuses `needed`.
        """
        needed = nbytes if needed is None else min(needed, nbytes)
        left = granted()
        if left is not None:
            nbytes = min(nbytes, max(needed, left // _SHARE))
        mapped = _map(nbytes) or _smaller(nbytes, needed)
        if mapped is None:
            raise _refusal(needed, left)
        self._map = mapped
        self.nbytes = len(mapped)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            with contextlib.suppress(OSError):  # kernels without huge pages have nothing to switch off
                self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self.memory: Bytes = np.frombuffer(self._map, np.uint8)

    def give_back(self, start: int, nbytes: int) -> None:
        """Return whole pages to the system; they read as zeros afterwards."""
        self._map.madvise(mmap.MADV_DONTNEED, start, nbytes)

    def resident(self) -> int:
        """Bytes that are in memory now, as the system counts them (slow: for tests and reports)."""
        pages = self.nbytes // mmap.PAGESIZE
        library = ctypes.CDLL(None, use_errno=True)
        start, total = self.memory.ctypes.data, 0
        for first in range(0, pages, _LOOK):
            count = min(_LOOK, pages - first)
            state = (ctypes.c_ubyte * count)()
            address = ctypes.c_void_p(start + first * mmap.PAGESIZE)
            if library.mincore(address, ctypes.c_size_t(count * mmap.PAGESIZE), state):
                raise StorageError(f"mincore failed: errno {ctypes.get_errno()}")
            total += sum(bytes(state)) if max(state) <= 1 else sum(byte & 1 for byte in state)
        return total * mmap.PAGESIZE


def _map(nbytes: int) -> mmap.mmap | None:
    """Whole pages; None where the system refuses them."""
    size = max(1, -(-nbytes // mmap.PAGESIZE)) * mmap.PAGESIZE
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    except (OSError, ValueError, OverflowError):
        return None


def _smaller(nbytes: int, needed: int) -> mmap.mmap | None:
    """A share of what the system grants below `nbytes`, where it counts what is only reserved; at least `needed`."""
    while nbytes > needed:
        nbytes = max(needed, nbytes // 2)
        probe = _map(nbytes)
        if probe is not None:
            probe.close()
            return _map(max(needed, nbytes // _SHARE))
    return None


def _refusal(needed: int, left: int | None) -> StorageError:
    what = f"cannot reserve {format_size(needed)} of address space for the cache"
    if left is not None:
        return StorageError(
            f"{what}: `ulimit -v` leaves {format_size(left)}. "
            f"Give a memory budget of at most {format_size(left // 2)} (`--memory`), or raise `ulimit -v`"
        )
    held = machine_memory()
    if held is None or needed <= held:
        return StorageError(f"{what}: the system refuses it. Give a smaller memory budget (`--memory`)")
    return StorageError(
        f"{what}: this machine has {format_size(held)} of memory. Give a memory budget (`--memory`, "
        "`--process-memory`) of at most that, or leave it out"
    )
