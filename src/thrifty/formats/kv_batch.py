"""Many slabs of key-value segments at once: what `formats.kv` does a head at a time, for whole pages.

`slabs` are uint8 [count, slab_bytes], one row a head (or a layer and head), each laid out as `formats.kv` says.
"""

from __future__ import annotations

import numpy as np

from thrifty.arrays import Array, Bytes, Floats
from thrifty.errors import KernelError
from thrifty.formats import kv
from thrifty.formats.kv import DTYPES, PAGE
from thrifty.kernels import dispatch
from thrifty.kernels.reference import affine
from thrifty.kernels.reference.affine import Halves
from thrifty.kernels.reference.packing import pack_lanes

_ELEMENTS = 1 << 16
"""Numbers that are worked on at once while quantising: they stay in the core's own cache."""


def plain(slabs: Bytes, format: str, capacity: int, head_dim: int) -> tuple[Array, Array]:
    """Views of full-precision slabs: keys [count, pages, head_dim, 64], values [count, capacity, head_dim]."""
    if format not in DTYPES:
        raise KernelError(f"format '{format}' holds codes; only f32 and bf16 can be viewed as numbers")
    at, dtype = kv.offsets(format, capacity, head_dim), DTYPES[format]
    size = capacity * head_dim * dtype.itemsize
    keys = slabs[:, at.key_codes : at.key_codes + size].view(dtype)
    values = slabs[:, at.value_codes : at.value_codes + size].view(dtype)
    return keys.reshape(len(slabs), -1, head_dim, PAGE), values.reshape(len(slabs), capacity, head_dim)


def copy_pages(
    source: Bytes, target: Bytes, format: str, source_capacity: int, target_capacity: int, head_dim: int, first: int
) -> None:
    """Copy pages of `source` from page `first` on to the front of `target`, as many as it holds, byte for byte."""
    there, here = kv.offsets(format, source_capacity, head_dim), kv.offsets(format, target_capacity, head_dim)
    layout = kv.offsets(format, PAGE, head_dim)
    pages = min(target_capacity, source_capacity - first * PAGE) // PAGE
    names = ("key_codes", "key_parameters", "value_codes", "value_parameters")
    ends = (layout.key_parameters, layout.value_codes, layout.value_parameters, layout.total)
    for name, end in zip(names, ends, strict=True):
        size = end - getattr(layout, name)
        start, place = getattr(there, name) + first * size, getattr(here, name)
        target[:, place : place + pages * size] = source[:, start : start + pages * size]


def place_page(page: Bytes, target: Bytes, format: str, capacity: int, head_dim: int, place: int) -> None:
    """Put slabs of one page into slabs of many, as their page `place`, byte for byte."""
    layout, here = kv.offsets(format, PAGE, head_dim), kv.offsets(format, capacity, head_dim)
    names = ("key_codes", "key_parameters", "value_codes", "value_parameters")
    ends = (layout.key_parameters, layout.value_codes, layout.value_parameters, layout.total)
    for name, end in zip(names, ends, strict=True):
        first, size = getattr(layout, name), end - getattr(layout, name)
        start = getattr(here, name) + place * size
        target[:, start : start + size] = page[:, first : first + size]


def copy_tokens(
    source: Bytes,
    source_format: str,
    source_capacity: int,
    target: Bytes,
    target_format: str,
    target_capacity: int,
    head_dim: int,
    start: int,
    tokens: int,
) -> None:
    """Copy `tokens` tokens of full-precision slabs from token `start` on to the front of full-precision slabs."""
    keys, values = plain(source, source_format, source_capacity, head_dim)
    new_keys, new_values = plain(target, target_format, target_capacity, head_dim)
    new_values[:, :tokens] = values[:, start : start + tokens]
    first, offset = divmod(start, PAGE)
    # a page of the target takes the end of one page of the source and the beginning of the next
    for place, page, skip, width in ((0, first, offset, PAGE - offset), (PAGE - offset, first + 1, 0, offset)):
        whole = (tokens - place - width) // PAGE + 1 if width else 0
        new_keys[:, :whole, :, place : place + width] = keys[:, page : page + whole, :, skip : skip + width]
        rest = tokens - whole * PAGE - place
        if width and rest > 0:
            new_keys[:, whole, :, place : place + rest] = keys[:, page + whole, :, skip : skip + rest]


def quantise(
    source: Bytes,
    source_format: str,
    source_capacity: int,
    target: Bytes,
    target_format: str,
    target_capacity: int,
    head_dim: int,
    first: int,
    tokens: int,
) -> None:
    """Store `tokens` tokens of full-precision slabs, from page `first` on, as codes at the front of `target`.

    Equals `kv.write` of the same tokens, slab by slab: a last group that is not full takes its scales from what it has.
    Raises KernelError for NaN or infinity.
    """
    keys, values = plain(source, source_format, source_capacity, head_dim)
    ids = (kv.FORMATS.index(source_format), kv.FORMATS.index(target_format))
    shapes = (source, ids[0], source_capacity, target, ids[1], target_capacity)
    if dispatch.compress(*shapes, head_dim, first, tokens):
        return
    page = head_dim * PAGE
    rows = min(len(source), max(1, _ELEMENTS // page))
    step = max(1, _ELEMENTS // (rows * page))
    pages = -(-tokens // PAGE)
    for row in range(0, len(source), rows):
        part = target[row : row + rows]
        for start in range(0, pages, step):
            stop = min(start + step, pages)
            here = min(tokens, stop * PAGE) - start * PAGE
            token = (first + start) * PAGE
            some_keys = keys[row : row + rows, first + start : first + stop].astype(np.float32)
            some_values = values[row : row + rows, token : token + here].astype(np.float32)
            _keys(some_keys, here, part, target_format, target_capacity, head_dim, start)
            _values(some_values, part, target_format, target_capacity, head_dim, start)


def _affine(groups: Floats, bits: int, what: str) -> tuple[Bytes, Halves, Halves]:
    """`affine.affine`, which sees what is not finite in its groups' extremes; the error then counts the numbers."""
    try:
        return affine.affine(groups, (1 << bits) - 1)
    except KernelError:
        affine.require_finite(groups, what)
        raise


def _keys(keys: Floats, tokens: int, target: Bytes, format: str, capacity: int, head_dim: int, page: int) -> None:
    """keys fp32 [count, pages, d, 64], of which `tokens` are real (others change) → codes, parameters from `page`."""
    how, dimension = kv.codes(format), kv.stored_dim(format, head_dim)
    bits, groups = how.bits, PAGE // how.group
    rest = tokens % PAGE
    if rest:
        keys[:, -1, :, rest:] = keys[:, -1, :, rest - 1 : rest]
    if dimension > head_dim:
        keys = np.concatenate((keys, keys[:, :, -1:].repeat(dimension - head_dim, axis=2)), axis=2)
    shape = keys.shape
    codes, scale, minimum = _affine(keys.reshape(*shape[:3], groups, how.group), bits, "keys")
    at = kv.offsets(format, capacity, head_dim)
    count, pages = shape[:2]
    size = PAGE * dimension * bits // 8
    start = at.key_codes + page * size
    target[:, start : start + pages * size] = pack_lanes(codes.reshape(shape), bits).reshape(count, -1)
    parameters = np.stack((scale, minimum), axis=2).swapaxes(3, 4)  # [count, pages, 2, groups, d]
    size = 2 * groups * dimension * 2
    start = at.key_parameters + page * size
    target[:, start : start + pages * size] = _bytes(parameters, count)


def _values(values: Floats, target: Bytes, format: str, capacity: int, head_dim: int, page: int) -> None:
    """values fp32 [count, tokens, d] → codes and parameters from `page` on; the last page's other tokens are zero."""
    how, dimension = kv.codes(format), kv.stored_dim(format, head_dim)
    bits = how.bits
    if dimension > head_dim:
        values = np.concatenate((values, values[:, :, -1:].repeat(dimension - head_dim, axis=2)), axis=2)
    count, tokens = values.shape[:2]
    codes, scale, minimum = _affine(values.reshape(count, tokens, -1, how.group), bits, "values")
    pages = -(-tokens // PAGE)
    rows = np.zeros((count, pages * PAGE, dimension), np.uint8)
    rows[:, :tokens] = codes.reshape(count, tokens, dimension)
    at = kv.offsets(format, capacity, head_dim)
    size = PAGE * dimension * bits // 8
    start = at.value_codes + page * size
    packed = pack_lanes(rows.reshape(count, pages, PAGE, dimension), bits)
    target[:, start : start + pages * size] = packed.reshape(count, -1)
    parameters = np.zeros((count, 2, pages * PAGE, dimension // how.group), np.float16)
    parameters[:, 0, :tokens], parameters[:, 1, :tokens] = scale, minimum
    by_page = parameters.reshape(count, 2, pages, PAGE, -1).transpose(0, 2, 1, 4, 3)  # [count, pages, 2, d/g, 64]
    size = 2 * (dimension // how.group) * PAGE * 2
    start = at.value_parameters + page * size
    target[:, start : start + pages * size] = _bytes(by_page, count)


def _bytes(parameters: Halves, count: int) -> Bytes:
    """The bytes of numbers in their order, [count, bytes]."""
    return np.ascontiguousarray(parameters).view(np.uint8).reshape(count, -1)
