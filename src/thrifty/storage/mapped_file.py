"""A file in memory as the system brings it, and its descriptor, for reads that leave no page of it there."""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from pathlib import Path

import numpy as np

from thrifty.arrays import Bytes


class MappedFile:
    """A whole file as `content`, uint8 [bytes], mapped privately: pages come when they are touched.

    descriptor: of the same file, open as long as this object lives. Raises OSError where the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self.descriptor)
        # Copy-on-write, so that a stray in-place operation cannot crash the process or reach the file.
        mapped = mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_COPY)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # where the file is read from the disk, in pieces that make large pages
            with contextlib.suppress(OSError):  # kernels without them
                mapped.madvise(mmap.MADV_HUGEPAGE)
        self.content: Bytes = np.frombuffer(mapped, np.uint8)
