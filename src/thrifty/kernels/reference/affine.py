"""Rounding groups of numbers to small codes with float16 parameters.

Codes are always computed from the *rounded* parameters, so the error of an element is at most half a step
plus the rounding of the group's own parameters; a float16 step below 2⁻¹⁴ is itself only known to 2⁻²⁵. The
last axis of every argument is the group.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Array, Bytes, Floats
from thrifty.errors import KernelError

FLOAT16_MAX = 65504.0

Halves = npt.NDArray[np.float16]
SignedBytes = npt.NDArray[np.int8]


def require_finite(values: Array, what: str) -> None:
    """Raise KernelError where `values` has NaN or infinity: no format can hold them."""
    finite = np.isfinite(values)
    if not finite.all():
        count = int((~finite).sum())
        raise KernelError(f"{what} has {count} NaN or infinite value(s) of {values.size}: quantised formats hold none")


def to_float16(values: Floats, what: str) -> Halves:
    """Nearest float16. Raises KernelError where a value is beyond float16's range of ±65504."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(np.float16)
    if not np.isfinite(rounded).all():
        largest = float(np.abs(values).max())
        raise KernelError(
            f"{what} {largest:.6g} is beyond float16 (limit {FLOAT16_MAX:.0f}): keep this tensor in bf16 or f32"
        )
    return rounded


def affine(groups: Floats, levels: int) -> tuple[Bytes, Halves, Halves]:
    """x ≈ scale·code + minimum with code in 0..levels, as KIVI (arXiv 2402.02750, §3.1) and asymmetric RTN.

    groups: fp32 [..., size] → codes uint8 [..., size], scale fp16 [...], minimum fp16 [...].
    A constant group is exact where float16 holds its value, else to 2⁻²² of it (the scale carries the
    remainder).
    """
    low, high = _extremes(groups)
    minimum = to_float16(low, "group minimum")
    base = minimum.astype(np.float32)
    rest = high - base
    scale = to_float16(np.where(high == low, rest, rest / levels), "group scale")
    return _codes(groups - base[..., None], scale, 0, levels).astype(np.uint8), scale, minimum


def centred8(groups: Floats) -> tuple[SignedBytes, Halves, Halves]:
    """x ≈ scale·code + middle with signed 8-bit codes −127..127; same shapes as `affine`, codes int8."""
    low, high = _extremes(groups)
    middle = to_float16(np.divide(low + high, 2), "group middle")
    base = middle.astype(np.float32)
    reach = np.maximum(high - base, base - low)
    scale = to_float16(np.where(high == low, high - base, reach / 127), "group scale")
    return _codes(groups - base[..., None], scale, -127, 127).astype(np.int8), scale, middle


def symmetric8(groups: Floats) -> tuple[SignedBytes, Halves]:
    """x ≈ scale·code, signed codes −127..127 (absolute maximum, as GGUF's Q8_0): codes int8, scale fp16."""
    scale = to_float16(np.abs(groups).max(axis=-1) / 127, "group scale")
    return _codes(groups, scale, -127, 127).astype(np.int8), scale


def symmetric(groups: Floats, bits: int) -> tuple[Bytes, Halves]:
    """x ≈ scale·(code − 2^(bits−1)) with code 0..2^bits − 1: codes uint8, scale fp16 of either sign.

    The value of largest magnitude takes code 0, so that all codes are used; hence the signed scale. Of 4 bits it is
    GGUF's Q4_0.
    """
    half = 1 << (bits - 1)
    place = np.abs(groups).argmax(axis=-1, keepdims=True)
    extreme = np.take_along_axis(groups, place, axis=-1)[..., 0]
    scale = to_float16(np.divide(extreme, -half), "group scale")
    return (_codes(groups, scale, -half, half - 1) + half).astype(np.uint8), scale


def _extremes(groups: Floats) -> tuple[Floats, Floats]:
    """The least and the greatest of each group. Turned first: NumPy is slow along a short last axis."""
    turned = np.ascontiguousarray(np.moveaxis(groups, -1, 0))
    return turned.min(axis=0), turned.max(axis=0)


def _codes(offsets: Floats, scale: Halves, low: int, high: int) -> Floats:
    """round-half-even(offset/scale) clamped; zero where the scale is zero."""
    divisor = scale.astype(np.float32)[..., None]
    empty = divisor == 0
    quotient: Floats = np.divide(offsets, np.where(empty, np.float32(1), divisor))
    np.rint(quotient, out=quotient)
    if empty.any():
        np.copyto(quotient, 0, where=empty)
    return np.clip(quotient, low, high, out=quotient)
