"""The roofline of a decode step: bytes of weights and cache that it must read, over the bandwidth of the
machine.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import BFLOAT16, Array
from thrifty.formats.linear import DenseLinear
from thrifty.kernels import dispatch
from thrifty.kernels.threads import pool_threads
from thrifty.models.gguf.header import TENSOR_TYPES

if TYPE_CHECKING:
    from thrifty.models.model import Model

BUFFER_MEGABYTES = 512  # far beyond any cache
LEAST_MEGABYTES = 128
BEYOND = 4  # times the processor's last cache, of which reads say nothing of the memory
REPEATS = 5
BLOCKS = {name: (values, size) for name, values, size in TENSOR_TYPES.values()}
"""Values and bytes of a block of every type of tensors."""
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Roofline:
    """bytes_per_token: read by a decode step. bandwidth: GB/s (10^9 bytes)."""

    bytes_per_token: int
    bandwidth: float

    @property
    def rate(self) -> float:
        """Tokens a second if reading were all."""
        return self.bandwidth * 1e9 / self.bytes_per_token

    def fraction(self, measured_rate: float) -> float:
        """The share of the roofline that a measured rate reaches."""
        return measured_rate / self.rate


def weight_bytes_per_token(model: Model) -> int:
    """Bytes of weights that one decode step reads: every linear once, of experts the active ones; of an
    embedding that is not also the logits' matrix one row, which does not count.
    """
    total = 0
    experts = model.config.experts
    for name, linear in model.linears.items():
        if name == "embedding" and "head" in model.linears:
            continue
        share = experts.active / experts.count if experts is not None and ".experts." in name else 1.0
        total += round(linear.nbytes * share)
    return total


def file_bytes_per_token(model: Model) -> int | None:
    """What the checkpoint's files hold of the same linears, in their own types; None where a type's bytes are not
    known, and for a model that came from no file.
    """
    types = {entry.name: entry.origin for entry in model.report}
    total, experts = 0.0, model.config.experts
    for name, linear in model.linears.items():
        if name == "embedding" and "head" in model.linears:
            continue
        block = BLOCKS.get(types.get(name, ""))
        if block is None:
            return None
        share = experts.active / experts.count if experts is not None and ".experts." in name else 1.0
        bias = 0 if linear.bias is None else linear.bias.nbytes
        total += (linear.out_features * linear.in_features * block[1] / block[0] + bias) * share
    return round(total)


def read_bandwidth(threads: int | None = None, megabytes: int | None = None) -> tuple[float, str]:
    """GB/s that all threads read from memory together, best of several, and what measured it ("native", or
    "numpy" with one thread). megabytes: that are read, and held meanwhile; None: 512.
    """
    megabytes = BUFFER_MEGABYTES if megabytes is None else min(BUFFER_MEGABYTES, megabytes)
    native = dispatch.native()
    if native is not None:
        if threads is not None:
            pool_threads().set(threads)
        return float(native.read_bandwidth(megabytes, REPEATS)), "native"
    buffer = np.ones(megabytes * 1_000_000 // 8, np.int64)
    return buffer.nbytes / _fastest(buffer.sum) / 1e9, "numpy"


def least_megabytes() -> int:
    """What `read_bandwidth` must read at least, so that caches do not count: four times the last one; 512 where the
    system does not tell it.
    """
    sizes = [_cache_bytes(path) for path in CACHES.glob("index*/size")]
    if not any(sizes):
        return BUFFER_MEGABYTES
    return min(BUFFER_MEGABYTES, max(LEAST_MEGABYTES, BEYOND * max(sizes) // 10**6))


def _cache_bytes(path: Path) -> int:
    """Of a file such as `/sys/…/index3/size`, which says "32768K"; 0 where it says something else."""
    try:
        size = re.fullmatch(r"(\d+)([KMG]?)", path.read_text("ascii").strip())
    except (OSError, UnicodeDecodeError):
        return 0
    return int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]] if size else 0


def gemm_rate() -> tuple[float, str]:
    """The best of several matrix products and what measured it: "native" (int4 weights, int8 activations; 10⁹
    operations/s) or "numpy" (fp32; GFLOP/s).
    """
    native = dispatch.native()
    if native is not None:
        return float(native.gemm_rate()), "native"
    return fp32_rate(), "numpy"


def fp32_rate(size: int = 768) -> float:
    """GFLOP/s of NumPy's fp32 product of two square matrices."""
    left, right = _normal(size), _normal(size)
    return 2 * size**3 / _fastest(lambda: left @ right) / 1e9


def bf16_rate(size: int = 1024) -> float:
    """GFLOP/s of a product with square weights in bf16, as the engine stores and multiplies them."""
    linear = DenseLinear.from_weight(_normal(size), BFLOAT16, packed=True)
    rows = _normal(size)
    return 2 * size**3 / _fastest(lambda: linear.multiply(rows)) / 1e9


def _normal(size: int) -> Array:
    return np.random.default_rng(0).standard_normal((size, size), np.float32)


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the shortest of several calls."""
    best = math.inf
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
