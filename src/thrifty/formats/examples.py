"""Layers of every variant of every stored format: for lists of what there is and what it takes, benchmarks, tests."""

from __future__ import annotations

from collections.abc import Iterator

from thrifty.formats.linear import PackedLinear  # which imports every format
from thrifty.formats.packed import formats


def examples(rows: int, columns: int) -> Iterator[PackedLinear]:
    """Every variant as a layer [rows, columns] of random numbers; columns a multiple of 256."""
    for kind in formats():
        yield from kind.examples(rows, columns)
