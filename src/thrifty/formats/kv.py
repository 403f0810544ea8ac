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

import torch
from torch import Tensor

from thrifty.errors import KernelError, nearest
from thrifty.kernels.reference import affine
from thrifty.kernels.reference.packing import PACK, pack_lanes, padded, unpack_lanes

PAGE = 64
ALIGNMENT = 64

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


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
FORMATS = (*_DTYPES, *_CODES)  # a format's position is its id in native code


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
    for name, found in _CODES.items():
        if found == Codes(bits, group):
            return name
    known = ", ".join(f"{one.bits} bits in groups of {one.group}" for one in _CODES.values())
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
        plain = capacity * dimension * _DTYPES[format].itemsize
        sizes = (plain, 0, plain, 0)
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + padded(size, ALIGNMENT))
    return Offsets(*starts)


def slab_bytes(format: str, capacity: int, head_dim: int) -> int:
    """Bytes of one head's slab."""
    return offsets(format, capacity, head_dim).total


def write(format: str, slab: Tensor, capacity: int, head_dim: int, start: int, keys: Tensor, values: Tensor) -> None:
    """Store tokens start..start+n−1 of one head into `slab`, uint8 [slab_bytes], in place.

    keys, values: [n, head_dim], any float dtype. f32 and bf16 append anywhere. Quantised formats write whole
    groups: `start` is a multiple of the format's group, and a last group of fewer tokens takes its scales from those
    alone (it cannot be appended to). Raises KernelError for a wrong shape or range, NaN or infinity.
    """
    where = _arrays(format, slab, capacity, head_dim)
    count = len(keys)
    if tuple(keys.shape) != (count, head_dim) or keys.shape != values.shape:
        raise KernelError(
            f"keys {tuple(keys.shape)} and values {tuple(values.shape)} must both be [tokens, {head_dim}]"
        )
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
        _write_keys(where, how, start, keys.detach().float())
        _write_values(where, how, start, values.detach().float())


def read(
    format: str, slab: Tensor, capacity: int, head_dim: int, start: int = 0, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """`count` tokens from `start` (default: all) as new fp32 keys and values, each [count, head_dim]."""
    where = _arrays(format, slab, capacity, head_dim)
    stop = capacity if count is None else start + count
    if not 0 <= start <= stop <= capacity:
        raise KernelError(f"tokens {start}..{stop} are not in a segment of {capacity} tokens")
    pages = slice(start // PAGE, -(-stop // PAGE))
    inside = slice(start - pages.start * PAGE, stop - pages.start * PAGE)
    if not is_quantised(format):
        keys = where.keys[pages].to(torch.float32, copy=True).transpose(1, 2).reshape(-1, head_dim).contiguous()
        return keys[inside], where.values[start:stop].to(torch.float32, copy=True)
    how = codes(format)
    keys, values = _read_keys(where, how, pages), _read_values(where, how, pages)
    return keys[inside, :head_dim], values[inside, :head_dim]


@dataclass(frozen=True)
class _Arrays:
    """The four arrays of a slab as typed views on its bytes; the parameters are empty in plain formats."""

    keys: Tensor
    key_parameters: Tensor
    values: Tensor
    value_parameters: Tensor


def _arrays(format: str, slab: Tensor, capacity: int, head_dim: int) -> _Arrays:
    at = offsets(format, capacity, head_dim)
    if slab.dtype != torch.uint8 or slab.dim() != 1 or len(slab) < at.total or not slab.is_contiguous():
        raise KernelError(
            f"a slab of {capacity} tokens as {format} is {at.total} contiguous bytes, "
            f"found {slab.dtype} {tuple(slab.shape)}"
        )
    pages, dimension = capacity // PAGE, stored_dim(format, head_dim)

    def array(start: int, dtype: torch.dtype, *shape: int) -> Tensor:
        size = dtype.itemsize
        for extent in shape:
            size *= extent
        return slab[start : start + size].view(dtype).view(shape)

    if format in _DTYPES:
        dtype, empty = _DTYPES[format], slab[:0]
        keys = array(at.key_codes, dtype, pages, dimension, PAGE)
        return _Arrays(keys, empty, array(at.value_codes, dtype, capacity, dimension), empty)
    how = codes(format)
    width = PAGE * dimension * how.bits // 8
    return _Arrays(
        array(at.key_codes, torch.uint8, pages, width),
        array(at.key_parameters, torch.float16, pages, 2, PAGE // how.group, dimension),
        array(at.value_codes, torch.uint8, pages, width),
        array(at.value_parameters, torch.float16, pages, 2, dimension // how.group, PAGE),
    )


def _write_plain(where: _Arrays, start: int, keys: Tensor, values: Tensor) -> None:
    stop = start + len(keys)
    where.values[start:stop] = values.detach().to(where.values.dtype)
    columns = keys.detach().to(where.keys.dtype).T
    first = start
    while first < stop:
        page, offset = divmod(first, PAGE)
        last = min(stop, (page + 1) * PAGE)
        where.keys[page, :, offset : offset + last - first] = columns[:, first - start : last - start]
        first = last


def _grow(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """[n, c] → [rows, columns] by repeating the last row and column: every group's extremes stay."""
    tensor = torch.cat((tensor, tensor[-1:].expand(rows - len(tensor), -1))) if rows > len(tensor) else tensor
    missing = columns - tensor.shape[1]
    return torch.cat((tensor, tensor[:, -1:].expand(-1, missing)), dim=1) if missing else tensor


def _write_keys(where: _Arrays, how: Codes, start: int, keys: Tensor) -> None:
    """Groups of tokens: parameters per channel, codes packed with the channels as rows."""
    size, in_page = how.group, PAGE // how.group
    groups = padded(len(keys), size) // size
    dimension = where.key_parameters.shape[-1]
    grown = _grow(keys, groups * size, dimension).view(groups, size, dimension)
    by_channel = grown.transpose(1, 2).contiguous()  # [groups, d, tokens of a group]
    found, scale, minimum = affine.affine(by_channel, (1 << how.bits) - 1)
    for group in range(groups):
        page, place = divmod(start // size + group, in_page)
        where.key_parameters[page, 0, place] = scale[group]
        where.key_parameters[page, 1, place] = minimum[group]
        whole = unpack_lanes(where.keys[page], how.bits, PAGE)
        whole[:, place * size : (place + 1) * size] = found[group]
        where.keys[page] = pack_lanes(whole, how.bits)


def _write_values(where: _Arrays, how: Codes, start: int, values: Tensor) -> None:
    """Groups of channels per token, codes packed with the tokens as rows."""
    dimension = where.key_parameters.shape[-1]
    groups = _grow(values, len(values), dimension).view(len(values), -1, how.group)
    found, scale, minimum = affine.affine(groups, (1 << how.bits) - 1)
    first, stop = start, start + len(values)
    while first < stop:
        page, offset = divmod(first, PAGE)
        last = min(stop, (page + 1) * PAGE)
        here, there = slice(offset, offset + last - first), slice(first - start, last - start)
        whole = unpack_lanes(where.values[page], how.bits, dimension)
        whole[here] = found[there].flatten(1)
        where.values[page] = pack_lanes(whole, how.bits)
        where.value_parameters[page, 0, :, here] = scale[there].T
        where.value_parameters[page, 1, :, here] = minimum[there].T
        first = last


def _read_keys(where: _Arrays, how: Codes, pages: slice) -> Tensor:
    """fp32 [64·pages, stored head_dim]."""
    found = unpack_lanes(where.keys[pages], how.bits, PAGE).float()  # [pages, d, 64]
    parameters = where.key_parameters[pages].float().transpose(2, 3)  # [pages, scale or minimum, d, group]
    scale, minimum = parameters[:, 0, :, :, None], parameters[:, 1, :, :, None]
    values = found.unflatten(2, (-1, how.group)) * scale + minimum
    return values.flatten(2).transpose(1, 2).reshape(-1, found.shape[1])


def _read_values(where: _Arrays, how: Codes, pages: slice) -> Tensor:
    """fp32 [64·pages, stored head_dim]."""
    dimension = where.key_parameters.shape[-1]
    found = unpack_lanes(where.values[pages], how.bits, dimension).float().unflatten(2, (-1, how.group))
    parameters = where.value_parameters[pages].float().transpose(2, 3)  # [pages, scale or minimum, 64, group]
    return (found * parameters[:, 0, :, :, None] + parameters[:, 1, :, :, None]).flatten(2).flatten(0, 1)
