"""A reserved range of address space whose pages take memory once written and are really given back."""

from __future__ import annotations

import contextlib
import ctypes
import mmap

import torch

from thrifty.errors import StorageError
from thrifty.storage.budget import format_size

_MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.13
_LOOK = 1 << 18  # pages whose state is asked for at a time


class Mapping:
    """Anonymous memory that is reserved without being committed; zero-filled wherever it is first touched."""

    def __init__(self, nbytes: int) -> None:
        """Whole pages of `nbytes`. Raises StorageError where the system refuses the reservation."""
        self.nbytes = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            self._map = mmap.mmap(-1, self.nbytes, flags=flags)
        except (OSError, ValueError, OverflowError) as error:
            raise StorageError(
                f"cannot reserve {format_size(self.nbytes)} of address space: {error}. "
                "Give a smaller reserve or raise `ulimit -v`"
            ) from error
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            with contextlib.suppress(OSError):  # kernels without huge pages have nothing to switch off
                self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self.tensor = torch.frombuffer(self._map, dtype=torch.uint8)
        self.address = self.tensor.data_ptr()

    def give_back(self, start: int, nbytes: int) -> None:
        """Return whole pages to the system; they read as zeros afterwards."""
        self._map.madvise(mmap.MADV_DONTNEED, start, nbytes)

    def resident(self) -> int:
        """Bytes that are in memory now, as the system counts them (slow: for tests and reports)."""
        pages = self.nbytes // mmap.PAGESIZE
        library = ctypes.CDLL(None, use_errno=True)
        total = 0
        for first in range(0, pages, _LOOK):
            count = min(_LOOK, pages - first)
            state = (ctypes.c_ubyte * count)()
            address = ctypes.c_void_p(self.address + first * mmap.PAGESIZE)
            if library.mincore(address, ctypes.c_size_t(count * mmap.PAGESIZE), state):
                raise StorageError(f"mincore failed: errno {ctypes.get_errno()}")
            total += sum(bytes(state)) if max(state) <= 1 else sum(byte & 1 for byte in state)
        return total * mmap.PAGESIZE
