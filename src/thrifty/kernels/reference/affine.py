"""Rounding groups of numbers to small codes with float16 parameters.

Codes are always computed from the *rounded* parameters, so the error of an element is at most half a step
plus the rounding of the group's own parameters; a float16 step below 2⁻¹⁴ is itself only known to 2⁻²⁵. The
last axis of every argument is the group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.errors import KernelError

FLOAT16_MAX = 65504.0


def require_finite(values: Tensor, what: str) -> None:
    """Raise KernelError where `values` has NaN or infinity: no format can hold them."""
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        count = int((~finite).sum())
        raise KernelError(
            f"{what} has {count} NaN or infinite value(s) of {values.numel()}: quantised formats hold none"
        )


def to_float16(values: Tensor, what: str) -> Tensor:
    """Nearest float16. Raises KernelError where a value is beyond float16's range of ±65504."""
    rounded = values.to(torch.float16)
    if not bool(torch.isfinite(rounded).all()):
        largest = float(values.abs().max())
        raise KernelError(
            f"{what} {largest:.6g} is beyond float16 (limit {FLOAT16_MAX:.0f}): keep this tensor in bf16 or f32"
        )
    return rounded


def affine(groups: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """x ≈ scale·code + minimum with code in 0..levels, as KIVI (arXiv 2402.02750, §3.1) and asymmetric RTN.

    groups: fp32 [..., size] → codes uint8 [..., size], scale fp16 [...], minimum fp16 [...].
    A constant group is exact where float16 holds its value, else to 2⁻²² of it (the scale carries the
    remainder).
    """
    low, high = torch.aminmax(groups, dim=-1)
    minimum = to_float16(low, "group minimum")
    rest = high - minimum.float()
    scale = to_float16(torch.where(high == low, rest, rest / levels), "group scale")
    return _codes(groups - minimum.float()[..., None], scale, 0, levels).to(torch.uint8), scale, minimum


def centred8(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x ≈ scale·code + middle with signed 8-bit codes −127..127; same shapes as `affine`, codes int8."""
    low, high = torch.aminmax(groups, dim=-1)
    middle = to_float16((low + high) / 2, "group middle")
    reach = torch.maximum(high - middle.float(), middle.float() - low)
    constant_scale = high - middle.float()
    scale = to_float16(torch.where(high == low, constant_scale, reach / 127), "group scale")
    return _codes(groups - middle.float()[..., None], scale, -127, 127).to(torch.int8), scale, middle


def symmetric8(groups: Tensor) -> tuple[Tensor, Tensor]:
    """x ≈ scale·code, signed codes −127..127 (absolute maximum, as GGUF's Q8_0): codes int8, scale fp16."""
    scale = to_float16(groups.abs().amax(dim=-1) / 127, "group scale")
    return _codes(groups, scale, -127, 127).to(torch.int8), scale


def symmetric4(groups: Tensor) -> tuple[Tensor, Tensor]:
    """x ≈ scale·(code − 8) with code 0..15, as GGUF's Q4_0: codes uint8, scale fp16 of either sign.

    The value of largest magnitude takes code 0, so that all sixteen codes are used; hence the signed scale.
    """
    extreme = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True)).squeeze(-1)
    scale = to_float16(extreme / -8, "group scale")
    return (_codes(groups, scale, -8, 7) + 8).to(torch.uint8), scale


def _codes(offsets: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """round-half-even(offset/scale) clamped; zero where the scale is zero."""
    divisor = scale.float()[..., None]
    quotient = offsets / torch.where(divisor == 0, torch.ones_like(divisor), divisor)
    return torch.where(divisor == 0, torch.zeros_like(quotient), quotient.round_()).clamp_(low, high)
