"""Memory as the operating system sees it: what the process held, at its highest, while something ran."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from thrifty.storage.heap import hand_back
from thrifty.storage.process import peak_resident, resident

__all__ = ["ProcessMemory", "peak_resident", "release", "resident", "serving_baseline", "watch"]

RESET_PEAK = "5"  # written to clear_refs: VmHWM starts again from the present (proc(5))


@dataclass
class ProcessMemory:
    """Resident bytes of the process: before, at the peak and after a measured span."""

    before: int = 0
    peak: int = 0
    after: int = 0


@contextmanager
def watch() -> Iterator[ProcessMemory]:
    """Measure a span. Garbage of earlier work is collected and handed back to the system first.

    Where the system keeps no peak that can be reset (macOS), the peak is that of the whole process.
    """
    release()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    memory = ProcessMemory(before=resident())
    try:
        yield memory
    finally:
        memory.after = resident()
        # The kernel counts pages by thread and adds them up late: its peak may lag behind what is resident now.
        memory.peak = max(peak_resident(), memory.before, memory.after)


def release() -> None:
    """Collect garbage and hand the allocator's free pages back, so that figures do not carry another run's
    waste.
    """
    gc.collect()
    hand_back()


SERVING = """
import sys
from thrifty.api import Thrifty
from thrifty.engine.admission.process_memory import baseline
from thrifty.models import load
print(baseline(load(sys.argv[1], copy=sys.argv[2] == "copy")))
"""


@cache
def serving_baseline(path: Path, copy: bool = True) -> int:
    """Resident bytes of a process that serves the model of a path, weights, workspace and caches left out: Python, its
    libraries and the tokenizer. Measured in a process of its own, which takes about a second. copy: of `models.load`.
    """
    command = [sys.executable, "-c", SERVING, str(path), "copy" if copy else "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"the baseline of a serving process cannot be measured: {done.stderr.strip()[-400:]}")
    return int(done.stdout.split()[-1])
