"""What the system says that this process takes."""

from __future__ import annotations

import mmap
from pathlib import Path


def process_memory() -> int:
    """Resident bytes of this process."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * mmap.PAGESIZE


def mapped_resident(path: Path) -> int:
    """Bytes of a file's mappings that this process holds."""
    total, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        field = line.split()
        if not field[0].endswith(":"):
            here = line.endswith(str(path))
        elif here and field[0] == "Rss:":
            total += 1024 * int(field[1])
    return total
