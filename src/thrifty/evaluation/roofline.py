"""The roofline of a decode step: bytes of weights and cache that it must read, over the bandwidth of the
machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import BFLOAT16, Array
from thrifty.formats.linear import DenseLinear
from thrifty.kernels import dispatch

if TYPE_CHECKING:
    from thrifty.models.model import Model

BUFFER_MEGABYTES = 512  # far beyond any cache
REPEATS = 5


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


def read_bandwidth(threads: int | None = None) -> tuple[float, str]:
    """GB/s that all threads read from memory together, best of several, and what measured it ("native", or
    "numpy" with one thread).
    """
    native = dispatch.native()
    if native is not None:
        if threads is not None:
            dispatch.set_threads(threads)
        return float(native.read_bandwidth(BUFFER_MEGABYTES, REPEATS)), "native"
    buffer = np.ones(BUFFER_MEGABYTES * 1_000_000 // 8, np.int64)
    return buffer.nbytes / _fastest(buffer.sum) / 1e9, "numpy"


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
