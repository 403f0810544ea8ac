"""How much address space the system still grants to this process."""

from __future__ import annotations

import mmap
import os
import resource
from pathlib import Path

_STATM = Path("/proc/self/statm")
_LIMITS = ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5))  # and the place of what counts towards it in statm


def machine_memory() -> int | None:
    """Bytes of memory that the machine has; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    except (AttributeError, ValueError, OSError):
        return None


def granted() -> int | None:
    """Bytes until the process's own limits (`ulimit -v`, `ulimit -d`) refuse; None where there are none."""
    limits = [(limit, place) for kind, place in _LIMITS if (limit := resource.getrlimit(kind)[0]) != -1]
    if not limits:
        return None
    try:
        pages = [int(field) for field in _STATM.read_text("ascii").split()]
    except (OSError, ValueError):
        pages = [0] * 7
    return max(0, min(limit - pages[place] * mmap.PAGESIZE for limit, place in limits))
