"""Machines as a roofline sees them: this one, measured, and well-known ones from their data sheets."""

from __future__ import annotations

import importlib.resources
import os
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.errors import ThriftyError, nearest
from thrifty.evaluation.roofline import roofline

THIS = "this"
GIB = 1 << 30
# What may compute with weights (or a cache) of a stored format, best first. Codes of every kind, those of all other
# labels ("int4-g32", "q4_k" …), meet 8-bit activations.
CODES = ("int8", "bf16", "fp16", "fp32")
ARITHMETIC: Mapping[str, tuple[str, ...]] = {
    "bf16": ("bf16", "fp16", "fp32"),
    "f16": ("fp32", "bf16", "fp16"),
    "f32": ("fp32", "bf16", "fp16"),
}


class MachineError(ThriftyError):
    """No machine of that name is known, or its entry cannot be used."""


@dataclass(frozen=True)
class Machine:
    """bandwidth: bytes a second. rates: operations a second by number format, such as "int8", "bf16", "fp32" (a
    multiply-add is two). memory: bytes. source: where the figures come from.
    """

    name: str
    bandwidth: float
    rates: Mapping[str, float]
    memory: int
    title: str = ""
    source: str = ""

    def arithmetic(self, stored: str) -> str:
        """The number format that products with a stored format ("int4-g32", "q4_k", "bf16", "f32") are computed in.

        Raises MachineError where the machine has no rate for any.
        """
        fitting = ARITHMETIC.get(stored, CODES)
        for name in fitting:
            if name in self.rates:
                return name
        raise MachineError(
            f"machine '{self.name}' has rates for {', '.join(self.rates) or 'nothing'}, and none that multiplies "
            f"'{stored}' weights; add one of {', '.join(fitting)}"
        )

    def rate(self, stored: str) -> float:
        """Operations a second with a stored format."""
        return self.rates[self.arithmetic(stored)]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "title": self.title,
            "bandwidth_gb_s": round(self.bandwidth / 1e9, 1),
            "rates_gop_s": {name: round(rate / 1e9, 1) for name, rate in self.rates.items()},
            "memory_bytes": self.memory,
            "source": self.source,
        }


def names() -> list[str]:
    """The machines of the table, sorted."""
    return sorted(_table())


def named(name: str) -> Machine:
    """A machine of the table. Raises MachineError with the nearest known name."""
    table = _table()
    if name not in table:
        raise MachineError(f"no machine is called '{name[:80]}'. {nearest(name, [*table, THIS])}")
    entry = table[name]
    rates = {kind: float(rate) * 1e12 for kind, rate in entry["rates"].items()}
    memory = round(entry["memory"] * GIB)
    return Machine(name, entry["bandwidth"] * 1e9, rates, memory, title=entry["title"], source=entry["source"])


def this_machine(threads: int | None = None, *, sparing: bool = False) -> Machine:
    """This machine, measured in about two seconds: reads of memory, and matrix products with int4 weights and 8-bit
    activations, in bf16 (native kernels) and in fp32 (NumPy).

    threads: of the native kernels; None leaves them as they are. sparing: hold no more memory meanwhile than caches
    make needful, see `roofline.least_megabytes`. Other work on the machine lowers the figures.
    """
    import psutil

    bandwidth, bandwidth_by = roofline.read_bandwidth(threads, roofline.least_megabytes() if sparing else None)
    best, best_by = roofline.gemm_rate()
    rates = {"int8": best * 1e9} if best_by == "native" else {}
    rates["bf16"] = roofline.bf16_rate() * 1e9
    rates["fp32"] = roofline.fp32_rate() * 1e9
    return Machine(
        THIS,
        bandwidth * 1e9,
        rates,
        int(psutil.virtual_memory().total),
        title=f"{cpu_name()}, {cores()} cores",
        source=f"measured: bandwidth by {bandwidth_by}, products by {best_by} and numpy",
    )


def cpu_name() -> str:
    """The processor's name as the system gives it, "unknown" where it gives none."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _table() -> dict[str, Any]:
    text = (importlib.resources.files("thrifty.evaluation.roofline") / "machines.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
