"""RF8: a weight as a sum or difference of two powers of two, in eight bits (arXiv 2506.00486)."""

from __future__ import annotations

import numpy as np

from thrifty.arrays import Array, Bytes, Floats
from thrifty.formats.linear import CodebookLinear
from thrifty.kernels.reference import packing
from thrifty.kernels.reference.affine import require_finite

EXPONENTS = 16  # of the first power: 4 bits, counted down from the matrix's largest
GAPS = (0, 1, 2, 3, 4, -2, -3, -4)  # of the second power's exponent, with its sign; 0: there is none
GAP = 4  # the largest that is kept


def table() -> Floats:
    """fp32 [256]: what codes mean, the largest first power being 1. Bit 7 sign, bits 6–3 exponent, bits 2–0 the gap."""
    codes = np.arange(256)
    second = np.array([0.0 if gap == 0 else np.sign(gap) * 2.0 ** -abs(gap) for gap in GAPS])
    values = 2.0 ** -(codes >> 3 & EXPONENTS - 1) * (1 + second[codes & 7])
    signed: Floats = np.where(codes >> 7, -values, values).astype(np.float32)
    return signed


def encode(weight: Floats) -> tuple[Bytes, int]:
    """(codes uint8 of the weight's shape, the exponent of the largest first power).

    a = sign(w)·2^round(log₂|w|), r = w − a, b likewise of r, kept where its exponent is at most 4 below: eight cases
    are left. What is well below the smallest power becomes three quarters of it, and so does 0.
    """
    sizes = np.abs(weight.astype(np.float64))
    first = _exponents(sizes)
    top = int(first.max()) if sizes.any() else 0
    first = np.clip(first, top - EXPONENTS + 1, top)
    rest = sizes - 2.0**first
    gaps = first - _exponents(np.abs(rest))
    gaps = np.where(rest < 0, np.maximum(gaps, 2), np.maximum(gaps, 1))
    kept = (gaps <= GAP) & (rest != 0)
    place = np.where(kept, np.where(rest < 0, GAP - 1 + gaps, gaps), 0)
    codes: Bytes = ((weight < 0) * 128 + (top - first) * 8 + place).astype(np.uint8)
    return codes, top


def stored(weight: Floats, bias: Array | None = None) -> CodebookLinear:
    """The linear layer in this format. Raises KernelError for NaN or infinity."""
    require_finite(weight, "weights")
    codes, top = encode(weight)
    group = packing.padded(weight.shape[1], 32)
    scales = np.full((len(weight), 1), 2.0**top, np.float32)
    linear = CodebookLinear.from_codes(codes, scales, table(), 8, group)
    if bias is not None:
        linear.set_bias(bias)
    return linear


def _exponents(sizes: Array) -> Array:
    """round(log₂) of numbers from 0 on; of 0 far below everything."""
    with np.errstate(divide="ignore"):
        rounded: Array = np.rint(np.log2(sizes))
    return np.where(np.isfinite(rounded), rounded, -1000).astype(np.int64)
