"""What the system says that this process takes."""

from __future__ import annotations

import mmap
from pathlib import Path


def process_memory() -> int:
    """Resident bytes of this process."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * mmap.PAGESIZE
