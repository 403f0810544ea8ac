"""The roofline of a decode step: bytes of weights and cache that it must read, over the bandwidth of the
machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from thrifty.formats.linear import PackedLinear

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
    for name, linear in model.decoder.linears():
        if not isinstance(linear, PackedLinear) or (name == "embedding" and model.decoder.head is not None):
            continue
        share = experts.active / experts.count if experts is not None and ".experts." in name else 1.0
        total += round(linear.nbytes * share)
    return total


def read_bandwidth(threads: int | None = None) -> tuple[float, str]:
    """GB/s that all threads read from memory together, best of several, and what measured it ("native" or
    "torch").
    """
    from thrifty.kernels import dispatch

    native = dispatch.native()
    if native is not None:
        if threads is not None:
            dispatch.set_threads(threads)
        return float(native.read_bandwidth(BUFFER_MEGABYTES, REPEATS)), "native"
    return _torch_bandwidth(), "torch"


def _torch_bandwidth() -> float:
    buffer = torch.ones(BUFFER_MEGABYTES * 1_000_000 // 8, dtype=torch.int64)
    best = 0.0
    for _ in range(REPEATS):
        start = time.perf_counter()
        buffer.sum()
        best = max(best, buffer.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def gemm_rate() -> tuple[float, str]:
    """The best of several matrix products and what measured it: "native" (int4 weights, int8 activations; 10⁹
    operations/s) or "torch" (bf16; GFLOP/s).
    """
    from thrifty.kernels import dispatch

    native = dispatch.native()
    if native is not None:
        return float(native.gemm_rate()), "native"
    return torch_gemm_rate(), "torch"


def torch_gemm_rate(size: int = 1024) -> float:
    """GFLOP/s of torch's bf16 product of two square matrices."""
    left, right = torch.randn(2, size, size).bfloat16().unbind()
    best = 0.0
    for _ in range(REPEATS):
        start = time.perf_counter()
        left @ right
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best
