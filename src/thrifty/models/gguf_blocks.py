"""GGUF blocks to group codes: what `formats.linear.GroupLinear` stores, 32 columns a group.

Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 keep their exact values. The K types keep their codes where they can (Q4_K, Q5_K: the
two-level scales are multiplied out and rounded to fp16) or are rounded again (Q6_K); the caller measures the error
against `values`. Block layouts: ggml's quantisation formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Bytes, Floats
from thrifty.errors import CheckpointError

GROUP = 32
_SIGNED_OFFSET = 128

Halves = npt.NDArray[np.float16]


@dataclass(frozen=True)
class GroupCodes:
    """Codes of some rows. w = scale * code + minimum, with the conventions of GroupLinear.

    codes: [rows, columns] uint8; 4 bit: 0..15; 8 bit: signed code + 128.
    scales: [rows, columns / 32] fp16. minimums: the same shape, or None: 0 at 8 bit, -8 * scale at 4 bit.
    """

    bits: int
    codes: Bytes
    scales: Halves
    minimums: Halves | None

    def dequantize(self) -> Floats:
        """fp32 [rows, columns]."""
        rows, columns = self.codes.shape
        code = self.codes.reshape(rows, -1, GROUP).astype(np.float32)
        if self.bits == 8:
            code -= _SIGNED_OFFSET
        elif self.minimums is None:
            code -= 8
        with np.errstate(invalid="ignore"):  # a damaged file's scale; `group_codes` refuses it
            code *= self.scales.astype(np.float32)[:, :, None]
        if self.minimums is not None:
            code += self.minimums.astype(np.float32)[:, :, None]
        return code.reshape(rows, columns)


@dataclass(frozen=True)
class BlockFormat:
    """How one GGUF type is read: `codes` for the packed form, `values` for its exact fp32 values."""

    bits: int
    has_minimum: bool
    codes: Callable[[Bytes], GroupCodes]
    values: Callable[[Bytes], Floats]
    exact: bool


def group_codes(kind: str, rows: Bytes, tensor: str) -> GroupCodes:
    """The codes of raw rows [rows, row_bytes]. Raises CheckpointError where a scale is not finite in fp16."""
    found = FORMATS[kind].codes(rows)
    for label, halves in (("scale", found.scales), ("minimum", found.minimums)):
        if halves is not None and not np.isfinite(halves).all():
            row, group = np.argwhere(~np.isfinite(halves))[0]
            reason = _why_not_finite(values(kind, rows[row : row + 1]))
            raise CheckpointError(f"tensor '{tensor}': the {label} of row {row}, group {group} {reason}")
    return found


def _why_not_finite(exact: Floats) -> str:
    if not np.isfinite(exact).all():
        return "is not finite; the file is damaged, fetch it again"
    largest = np.abs(exact).max()
    return (
        f"is beyond float16, which holds at most 65504 (the row's largest value is {largest:.5g}). "
        "Load the model with thrifty.reference.load(…, dtype=torch.float32), which keeps it"
    )


def values(kind: str, rows: Bytes) -> Floats:
    """The exact fp32 values of raw rows of any known type: [rows, row_bytes] -> [rows, columns]."""
    if kind in FORMATS:
        return FORMATS[kind].values(rows)
    rows = np.ascontiguousarray(rows)
    if kind == "F32":
        return rows.view("<f4")
    if kind == "F16":
        return rows.view("<f2").astype(np.float32)
    return (rows.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _blocks(rows: Bytes, size: int) -> Bytes:
    return np.ascontiguousarray(rows).reshape(rows.shape[0], -1, size)


def _halves(blocks: Bytes, start: int) -> Halves:
    """The fp16 number at byte `start` of each block: [rows, blocks]."""
    return np.ascontiguousarray(blocks[:, :, start : start + 2]).view("<f2")[:, :, 0]


def _nibbles(packed: Bytes) -> Bytes:
    """[..., n] bytes -> [..., 2n]: all low nibbles, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _high_bits(packed: Bytes) -> Bytes:
    """The fifth bits of 32 values: 4 bytes [..., 4] -> [..., 32], each 0 or 16."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << np.uint8(4)


def _flat(codes: Bytes) -> Bytes:
    return codes.reshape(codes.shape[0], -1)


def _q4_0(rows: Bytes) -> GroupCodes:
    blocks = _blocks(rows, 18)
    return GroupCodes(4, _flat(_nibbles(blocks[:, :, 2:])), _halves(blocks, 0), None)


def _q4_1(rows: Bytes) -> GroupCodes:
    blocks = _blocks(rows, 20)
    return GroupCodes(4, _flat(_nibbles(blocks[:, :, 4:])), _halves(blocks, 0), _halves(blocks, 2))


def _q5_0(rows: Bytes) -> GroupCodes:
    blocks = _blocks(rows, 22)
    codes = _nibbles(blocks[:, :, 6:]) | _high_bits(blocks[:, :, 2:6])
    return GroupCodes(8, _flat(codes + np.uint8(_SIGNED_OFFSET - 16)), _halves(blocks, 0), None)


def _q5_1(rows: Bytes) -> GroupCodes:
    blocks = _blocks(rows, 24)
    codes = _nibbles(blocks[:, :, 8:]) | _high_bits(blocks[:, :, 4:8])
    return GroupCodes(8, _flat(codes + np.uint8(_SIGNED_OFFSET)), _halves(blocks, 0), _halves(blocks, 2))


def _q8_0(rows: Bytes) -> GroupCodes:
    blocks = _blocks(rows, 34)
    return GroupCodes(8, _flat(blocks[:, :, 2:] ^ np.uint8(_SIGNED_OFFSET)), _halves(blocks, 0), None)


def _k_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """The eight 6-bit scales and minimums of a Q4_K or Q5_K block: 12 bytes [..., 12] -> two [..., 8]."""
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    minimums = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def _k_affine(blocks: Bytes) -> tuple[Floats, Floats]:
    """Multiplied-out scales and (negative) minimums of Q4_K or Q5_K blocks, each [rows, columns / 32] fp32."""
    scales, minimums = _k_scales(blocks[:, :, 4:16])
    scales *= _halves(blocks, 0).astype(np.float32)[:, :, None]
    minimums *= -_halves(blocks, 2).astype(np.float32)[:, :, None]
    return scales.reshape(len(blocks), -1), minimums.reshape(len(blocks), -1)


def _k_low_codes(packed: Bytes) -> Bytes:
    """The low nibbles of Q4_K and Q5_K: 128 bytes [..., 128] -> [..., 256]; 64 values share 32 bytes."""
    return _nibbles(packed.reshape(*packed.shape[:-1], 4, 32))


def _q4_k_parts(rows: Bytes) -> tuple[Bytes, Floats, Floats]:
    blocks = _blocks(rows, 144)
    return _flat(_k_low_codes(blocks[:, :, 16:])), *_k_affine(blocks)


def _q5_k_parts(rows: Bytes) -> tuple[Bytes, Floats, Floats]:
    blocks = _blocks(rows, 176)
    low = _k_low_codes(blocks[:, :, 48:]).reshape(*blocks.shape[:2], 8, 32)
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    high = ((blocks[:, :, None, 16:48] >> shifts) & 1) << np.uint8(4)
    return _flat(low | high.astype(np.uint8)), *_k_affine(blocks)


def _to_half(values: Floats) -> Halves:
    with np.errstate(over="ignore"):  # group_codes refuses what does not fit
        return values.astype(np.float16)


def _q4_k(rows: Bytes) -> GroupCodes:
    codes, scales, minimums = _q4_k_parts(rows)
    return GroupCodes(4, codes, _to_half(scales), _to_half(minimums))


def _q5_k(rows: Bytes) -> GroupCodes:
    codes, scales, minimums = _q5_k_parts(rows)
    return GroupCodes(8, codes + np.uint8(_SIGNED_OFFSET), _to_half(scales), _to_half(minimums))


def _affine_values(parts: tuple[Bytes, Floats, Floats]) -> Floats:
    codes, scales, minimums = parts
    grouped = codes.reshape(len(codes), -1, GROUP).astype(np.float32)
    return (grouped * scales[:, :, None] + minimums[:, :, None]).reshape(codes.shape)


def _q6_k_parts(rows: Bytes) -> tuple[npt.NDArray[np.int8], Floats]:
    """Signed codes [rows, columns] and scales [rows, columns / 16]."""
    blocks = _blocks(rows, 210)
    shape = blocks.shape[:2]
    low = _nibbles(blocks[:, :, :128].reshape(*shape, 2, 64)).reshape(*shape, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    high = ((blocks[:, :, 128:192].reshape(*shape, 2, 1, 32) >> shifts) & 3) << np.uint8(4)
    scales = np.ascontiguousarray(blocks[:, :, 192:208]).view(np.int8).astype(np.float32)
    scales *= _halves(blocks, 208).astype(np.float32)[:, :, None]
    codes = _flat(low | high.astype(np.uint8)).view(np.int8) - np.int8(32)
    return codes, scales.reshape(shape[0], -1)


def _q6_k_values(rows: Bytes) -> Floats:
    codes, scales = _q6_k_parts(rows)
    return (codes.reshape(len(codes), -1, 16).astype(np.float32) * scales[:, :, None]).reshape(codes.shape)


def _q6_k(rows: Bytes) -> GroupCodes:
    """Q6_K scales 16 values; GroupLinear 32. The pair's common scale is the one, of a few, with the least error."""
    _, scales = _q6_k_parts(rows)
    grouped = _q6_k_values(rows).reshape(len(rows), -1, GROUP)
    pair = np.abs(scales.reshape(len(rows), -1, 2))
    largest = np.abs(grouped).max(axis=-1)
    candidates = [
        largest / 127,
        pair.max(axis=-1),
        pair.max(axis=-1) / 2,
        pair.max(axis=-1) / 3,
        pair.min(axis=-1),
    ]
    best_codes = np.zeros(grouped.shape, dtype=np.int8)
    best_scales = np.zeros(grouped.shape[:2], dtype=np.float16)
    best_error = np.full(grouped.shape[:2], np.inf, dtype=np.float32)
    for candidate in candidates:
        scale = _to_half(candidate)
        rounded, error = _round_to(grouped, scale.astype(np.float32))
        better = error < best_error
        best_codes[better], best_scales[better] = rounded[better], scale[better]
        best_error = np.minimum(error, best_error)
    best_scales[~np.isfinite(largest) | ~np.isfinite(best_error)] = np.inf  # no scale does: `group_codes` refuses it
    return GroupCodes(8, _flat(best_codes.view(np.uint8) ^ np.uint8(_SIGNED_OFFSET)), best_scales, None)


def _round_to(grouped: Floats, scale: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Signed codes of [rows, groups, 32] at the given scales, and the squared error of each group."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(scale > 0, 1 / scale, 0)[:, :, None]
        rounded = np.clip(np.rint(np.nan_to_num(grouped * inverse)), -127, 127)
        error = np.square(rounded * scale[:, :, None] - grouped).sum(axis=-1)
    return rounded.astype(np.int8), np.nan_to_num(error, nan=np.inf)


def _exact(codes: Callable[[Bytes], GroupCodes]) -> Callable[[Bytes], Floats]:
    return lambda rows: codes(rows).dequantize()


FORMATS: Mapping[str, BlockFormat] = {
    "Q4_0": BlockFormat(4, False, _q4_0, _exact(_q4_0), True),
    "Q4_1": BlockFormat(4, True, _q4_1, _exact(_q4_1), True),
    "Q5_0": BlockFormat(8, False, _q5_0, _exact(_q5_0), True),
    "Q5_1": BlockFormat(8, True, _q5_1, _exact(_q5_1), True),
    "Q8_0": BlockFormat(8, False, _q8_0, _exact(_q8_0), True),
    "Q4_K": BlockFormat(4, True, _q4_k, lambda rows: _affine_values(_q4_k_parts(rows)), False),
    "Q5_K": BlockFormat(8, True, _q5_k, lambda rows: _affine_values(_q5_k_parts(rows)), False),
    "Q6_K": BlockFormat(8, False, _q6_k, _q6_k_values, False),
}
