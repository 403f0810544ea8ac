"""The process as the system counts it: bytes that are in memory, interpreter and libraries included."""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")


def resident() -> int:
    """Bytes of the process in memory now, memory-mapped weights that were touched included."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_resident() -> int:
    """The highest resident bytes since the process started, or since the system's counter was last reset."""
    return _status("VmHWM") or resident()


def _status(field: str) -> int | None:
    try:
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
