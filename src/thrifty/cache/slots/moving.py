"""Rows moved inside open pages: those that were accepted out of a tree take the first places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thrifty.arrays import Array, Integers
from thrifty.cache.slots.segment import Segment
from thrifty.formats import kv
from thrifty.formats.kv import PAGE


def move_rows(pages: Sequence[Segment], sources: Integers, first: int) -> None:
    """Copy rows `sources` of consecutive full-precision pages to rows first, first + 1, … Rows are counted from the
    first page's first, int64 and rising: a source lies at its target or behind it.
    """
    targets = np.arange(first, first + len(sources))
    taken = [(place, _read(page, sources[place == sources // PAGE])) for place, page in enumerate(pages)]
    keys = np.concatenate([own[0] for _, own in taken], axis=2)
    values = np.concatenate([own[1] for _, own in taken], axis=1)
    for place, page in enumerate(pages):
        here = targets // PAGE == place
        if here.any():
            page_keys, page_values = _numbers(page)
            page_keys[:, :, targets[here] % PAGE] = keys[:, :, here]
            page_values[:, targets[here] % PAGE] = values[:, here]


def _read(page: Segment, rows: Integers) -> tuple[Array, Array]:
    """Copies of a page's rows: keys [slabs, head_dim, n], values [slabs, n, head_dim]."""
    keys, values = _numbers(page)
    return keys[:, :, rows % PAGE], values[:, rows % PAGE]


def _numbers(page: Segment) -> tuple[Array, Array]:
    """The bits of a page's numbers, shared: keys [slabs, head_dim, 64], values [slabs, 64, head_dim]."""
    where, dim = kv.offsets(page.format, PAGE, page.head_dim), page.head_dim
    width = kv.DTYPES[page.format].itemsize
    bits, size = np.dtype(f"u{width}"), PAGE * dim * width
    slabs = page.slabs()
    keys = slabs[:, where.key_codes : where.key_codes + size].view(bits)
    values = slabs[:, where.value_codes : where.value_codes + size].view(bits)
    shape = len(slabs), dim, PAGE
    return keys.reshape(shape, copy=False), values.reshape(shape[0], PAGE, dim, copy=False)
