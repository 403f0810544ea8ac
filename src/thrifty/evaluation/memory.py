"""Memory as the operating system sees it: what the process held, at its highest, while something ran."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

STATUS = Path("/proc/self/status")
RESET_PEAK = "5"  # written to clear_refs: VmHWM starts again from the present (proc(5))


@dataclass
class Memory:
    """Resident bytes of the process: before, at the peak and after a measured span."""

    before: int = 0
    peak: int = 0
    after: int = 0


def resident() -> int:
    """Bytes of the process in memory now, memory-mapped weights that were touched included."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_resident() -> int:
    """The highest resident bytes since the process started, or since the last `watch`."""
    return _status("VmHWM") or resident()


@contextmanager
def watch() -> Iterator[Memory]:
    """Measure a span. Garbage of earlier work is collected and handed back to the system first.

    Where the system keeps no peak that can be reset (macOS), the peak is that of the whole process.
    """
    release()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    memory = Memory(before=resident())
    try:
        yield memory
    finally:
        memory.peak = peak_resident()
        memory.after = resident()


def release() -> None:
    """Collect garbage and hand the allocator's free pages back, so that figures do not carry another run's
    waste.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return


@cache
def import_baseline() -> int:
    """Resident bytes of a Python process that has only imported NumPy."""
    program = "import numpy, psutil; print(psutil.Process().memory_info().rss)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


def _status(field: str) -> int | None:
    try:
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
