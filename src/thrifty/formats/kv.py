"""Key-value segments: the bytes of one head's tokens in any format, and the view that cache policies read.

A head's slab holds four arrays, each 64-byte aligned, for a capacity C of whole 64-token pages:

    f32, bf16   keys [C/64][d][64] (channel-major inside a page), values [C][d]; no parameters
    codes       key codes [C/64][64·d·bits/8] (rows: channels, lanes: the page's tokens; `packing.pack_lanes`),
                key parameters fp16 [C/64][2][64/g][d] (scale and minimum of each group of g tokens, per channel),
                value codes [C/64][64·d·bits/8] (rows: the page's tokens, lanes: channels),
                value parameters fp16 [C/64][2][d/g][64] (scale and minimum per g channels and token)

x = scale·code + minimum, keys per channel over g tokens, values per token over g channels: g = 32 in int8, int4 and
int2, as KIVI (arXiv 2402.02750, §3.1), 16 in int4g16 and int2g16, as MiniKV (arXiv 2411.18077). Quantised
formats pad head_dim d to a multiple of 64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.arrays import BFLOAT16, Array, Bytes, Floats
from thrifty.errors import KernelError, nearest
from thrifty.kernels import dispatch
from thrifty.kernels.reference import affine
from thrifty.kernels.reference.packing import PACK, pack_lanes, padded, unpack_lanes

PAGE = 64
ALIGNMENT = 64

DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "bf16": BFLOAT16}


@dataclass(frozen=True)
class Codes:
    """How a quantised format stores numbers. group: neighbours that share a scale and a minimum, a divisor of 64."""

    bits: int
    group: int


_CODES = {
    "int8": Codes(8, 32),
    "int4": Codes(4, 32),
    "int2": Codes(2, 32),
    "int4g16": Codes(4, 16),
    "int2g16": Codes(2, 16),
}
FORMATS = (*DTYPES, *_CODES)  # a format's position is its id in native code


@dataclass(frozen=True)
class Offsets:
    """Byte offsets of the four arrays in a head's slab, and its total size (a multiple of 64)."""

    key_codes: int
    key_parameters: int
    value_codes: int
    value_parameters: int
    total: int


def is_quantised(format: str) -> bool:
    """Whether the format stores codes with parameters. Raises KernelError for an unknown format."""
    if format not in FORMATS:
        raise KernelError(f"no key-value format '{format}'. {nearest(format, FORMATS)}")
    return format in _CODES


def codes(format: str) -> Codes:
    """Bits and group of a quantised format. Raises KernelError for any other."""
    if not is_quantised(format):
        raise KernelError(f"format '{format}' holds numbers, not codes; formats of codes: {', '.join(_CODES)}")
    return _CODES[format]


def code_format(bits: int, group: int) -> str:
    """The format of codes with these bits and group. Raises KernelError where there is none, naming those there are."""
    for name, held in _CODES.items():
        if held == Codes(bits, group):
            return name
    known = ", ".join(f"{codes.bits} bits in groups of {codes.group}" for codes in _CODES.values())
    raise KernelError(f"no key-value format of {bits} bits in groups of {group}; there are {known}")


def stored_dim(format: str, head_dim: int) -> int:
    """head_dim as stored: padded to 64 in quantised formats."""
    return padded(head_dim, PACK) if is_quantised(format) else head_dim


def offsets(format: str, capacity: int, head_dim: int) -> Offsets:
    """Where the arrays lie. capacity: a multiple of 64 tokens; head_dim: even. Raises KernelError if not."""
    quantised = is_quantised(format)
    if capacity < PAGE or capacity % PAGE:
        raise KernelError(f"segment capacity {capacity} must be a positive multiple of {PAGE} tokens")
    if head_dim < 2 or head_dim % 2:
        raise KernelError(f"head_dim {head_dim} must be a positive even number")
    dimension = stored_dim(format, head_dim)
    if quantised:
        how = codes(format)
        size = capacity * dimension * how.bits // 8
        parameters = capacity // how.group * dimension * 2 * 2
        sizes = (size, parameters, size, parameters)
    else:
        plain = capacity * dimension * DTYPES[format].itemsize
        sizes = (plain, 0, plain, 0)
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + padded(size, ALIGNMENT))
    return Offsets(*starts)


def slab_bytes(format: str, capacity: int, head_dim: int) -> int:
    """Bytes of one head's slab."""
    return offsets(format, capacity, head_dim).total


def write(format: str, slab: Bytes, capacity: int, head_dim: int, start: int, keys: Array, values: Array) -> None:
    """Store tokens start..start+n−1 of one head into `slab`, uint8 [slab_bytes], in place.

    keys, values: [n, head_dim], any float dtype. f32 and bf16 append anywhere. Quantised formats write whole
    groups: `start` is a multiple of the format's group, and a last group of fewer tokens takes its scales from those
    alone (it cannot be appended to). Raises KernelError for a wrong shape or range, NaN or infinity.
    """
    where = _arrays(format, slab, capacity, head_dim)
    count = len(keys)
    if keys.shape != (count, head_dim) or keys.shape != values.shape:
        raise KernelError(f"keys {keys.shape} and values {values.shape} must both be [tokens, {head_dim}]")
    if start < 0 or start + count > capacity:
        raise KernelError(f"tokens {start}..{start + count} do not fit a segment of {capacity} tokens")
    if not is_quantised(format):
        _write_plain(where, start, keys, values)
        return
    how = codes(format)
    if start % how.group:
        raise KernelError(f"format {format} is written in groups of {how.group} tokens: start {start} is inside one")
    affine.require_finite(keys, "keys")
    affine.require_finite(values, "values")
    if count:
        _write_keys(where, how, start, keys.astype(np.float32, copy=False))
        _write_values(where, how, start, values.astype(np.float32, copy=False))


def read(
    format: str, slab: Bytes, capacity: int, head_dim: int, start: int = 0, count: int | None = None
) -> tuple[Floats, Floats]:
    """`count` tokens from `start` (default: all) as new fp32 keys and values, each [count, head_dim]."""
    where = _arrays(format, slab, capacity, head_dim)
    stop = capacity if count is None else start + count
    if not 0 <= start <= stop <= capacity:
        raise KernelError(f"tokens {start}..{stop} are not in a segment of {capacity} tokens")
    values = dispatch.read_slab(slab, FORMATS.index(format), capacity, head_dim, start, stop - start)
    return _read(where, format, head_dim, start, stop) if values is None else values


def _read(where: _Arrays, format: str, head_dim: int, start: int, stop: int) -> tuple[Floats, Floats]:
    """`read` in NumPy: what the native one is held against, and what runs where native code is off."""
    pages = slice(start // PAGE, -(-stop // PAGE))
    inside = slice(start - pages.start * PAGE, stop - pages.start * PAGE)
    if not is_quantised(format):
        by_token = where.keys[pages].astype(np.float32, copy=False).transpose(0, 2, 1)
        return np.ascontiguousarray(by_token).reshape(-1, head_dim)[inside], where.values[start:stop].astype(np.float32)
    how = codes(format)
    keys, values = _read_keys(where, how, pages), _read_values(where, how, pages)
    return keys[inside, :head_dim], values[inside, :head_dim]


@dataclass(frozen=True)
class _Arrays:
    """The four arrays of a slab as typed views on its bytes; the parameters are empty in plain formats."""

    keys: Array
    key_parameters: Array
    values: Array
    value_parameters: Array


def _arrays(format: str, slab: Bytes, capacity: int, head_dim: int) -> _Arrays:
    at = offsets(format, capacity, head_dim)
    if slab.dtype != np.uint8 or slab.ndim != 1 or len(slab) < at.total or not slab.flags.c_contiguous:
        raise KernelError(
            f"a slab of {capacity} tokens as {format} is {at.total} contiguous bytes, found {slab.dtype} {slab.shape}"
        )
    pages, dimension = capacity // PAGE, stored_dim(format, head_dim)

    def array(start: int, dtype: npt.DTypeLike, *shape: int) -> Array:
        return np.ndarray(shape, dtype, slab, start)

    if format in DTYPES:
        dtype, empty = DTYPES[format], slab[:0]
        keys = array(at.key_codes, dtype, pages, dimension, PAGE)
        return _Arrays(keys, empty, array(at.value_codes, dtype, capacity, dimension), empty)
    how = codes(format)
    width = PAGE * dimension * how.bits // 8
    return _Arrays(
        array(at.key_codes, np.uint8, pages, width),
        array(at.key_parameters, np.float16, pages, 2, PAGE // how.group, dimension),
        array(at.value_codes, np.uint8, pages, width),
        array(at.value_parameters, np.float16, pages, 2, dimension // how.group, PAGE),
    )


def _write_plain(where: _Arrays, start: int, keys: Array, values: Array) -> None:
    stop = start + len(keys)
    where.values[start:stop] = values
    columns = keys.astype(where.keys.dtype, copy=False).T
    first = start
    while first < stop:
        page, offset = divmod(first, PAGE)
        last = min(stop, (page + 1) * PAGE)
        where.keys[page, :, offset : offset + last - first] = columns[:, first - start : last - start]
        first = last


def _grow(numbers: Floats, rows: int, columns: int) -> Floats:
    """[n, c] → [rows, columns] by repeating the last row and column: every group's extremes stay."""
    count, width = numbers.shape
    if (rows, columns) == (count, width):
        return numbers
    grown = np.empty((rows, columns), np.float32)
    grown[:count, :width] = numbers
    grown[count:, :width] = numbers[-1:]
    grown[:, width:] = grown[:, width - 1 : width]
    return grown


def _write_keys(where: _Arrays, how: Codes, start: int, keys: Floats) -> None:
    """Groups of tokens: parameters per channel, codes packed with the channels as rows."""
    size, in_page = how.group, PAGE // how.group
    groups = padded(len(keys), size) // size
    dimension = where.key_parameters.shape[-1]
    grown = _grow(keys, groups * size, dimension).reshape(groups, size, dimension)
    by_channel = np.ascontiguousarray(grown.transpose(0, 2, 1))  # [groups, d, tokens of a group]
    rounded, scale, minimum = affine.affine(by_channel, (1 << how.bits) - 1)
    for group in range(groups):
        page, place = divmod(start // size + group, in_page)
        where.key_parameters[page, 0, place] = scale[group]
        where.key_parameters[page, 1, place] = minimum[group]
        whole = unpack_lanes(where.keys[page], how.bits, PAGE)
        whole[:, place * size : (place + 1) * size] = rounded[group]
        where.keys[page] = pack_lanes(whole, how.bits)


def _write_values(where: _Arrays, how: Codes, start: int, values: Floats) -> None:
    """Groups of channels per token, codes packed with the tokens as rows."""
    dimension = where.key_parameters.shape[-1]
    groups = _grow(values, len(values), dimension).reshape(len(values), -1, how.group)
    rounded, scale, minimum = affine.affine(groups, (1 << how.bits) - 1)
    first, stop = start, start + len(values)
    while first < stop:
        page, offset = divmod(first, PAGE)
        last = min(stop, (page + 1) * PAGE)
        here, there = slice(offset, offset + last - first), slice(first - start, last - start)
        whole = unpack_lanes(where.values[page], how.bits, dimension)
        whole[here] = rounded[there].reshape(last - first, dimension)
        where.values[page] = pack_lanes(whole, how.bits)
        where.value_parameters[page, 0, :, here] = scale[there].T
        where.value_parameters[page, 1, :, here] = minimum[there].T
        first = last


def _read_keys(where: _Arrays, how: Codes, pages: slice) -> Floats:
    """fp32 [64·pages, stored head_dim]."""
    dimension = where.key_parameters.shape[-1]
    values = _expand(unpack_lanes(where.keys[pages], how.bits, PAGE), where.key_parameters[pages], how)
    return values.transpose(0, 2, 1).reshape(-1, dimension)


def _read_values(where: _Arrays, how: Codes, pages: slice) -> Floats:
    """fp32 [64·pages, stored head_dim]."""
    dimension = where.key_parameters.shape[-1]
    values = _expand(unpack_lanes(where.values[pages], how.bits, dimension), where.value_parameters[pages], how)
    return values.reshape(-1, dimension)


def _expand(codes: Bytes, parameters: Array, how: Codes) -> Floats:
    """Codes uint8 [pages, n, m] and fp16 [pages, scale or minimum, m/group, n] → fp32 [pages, n, m]."""
    pages, rows, columns = codes.shape
    scale_minimum = parameters.astype(np.float32).transpose(0, 1, 3, 2)[..., None]  # [pages, 2, n, m/group, 1]
    values = codes.reshape(pages, rows, columns // how.group, how.group) * scale_minimum[:, 0]
    values += scale_minimum[:, 1]
    return values.reshape(codes.shape)
