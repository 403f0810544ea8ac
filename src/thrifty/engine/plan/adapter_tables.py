"""Adapters as a native plan takes them: one table for each, made when a step first needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from thrifty.arrays import Floats
from thrifty.errors import KernelError
from thrifty.kernels import dispatch
from thrifty.models.adapters import Adapter

AdapterEntry = tuple[int, Floats, Floats, float]  # linear, down, up, scale


class AdapterTables:
    """The native tables of one plan, for as long as their adapters live."""

    def __init__(self, native: Any, numbers: Mapping[str, int], shapes: Mapping[str, tuple[int, int]]) -> None:
        """native: the plan. numbers, shapes: number in it and [out, in] of each linear that takes an adapter."""
        self._native, self._numbers, self._shapes = native, numbers, shapes
        self._tables: WeakKeyDictionary[Adapter, Any] = WeakKeyDictionary()

    def of(self, adapter: Adapter) -> Any:
        """The adapter's table.

        Raises KernelError for a linear that takes none and for matrices of other shapes or types.
        """
        table = self._tables.get(adapter)
        if table is None:
            entries = adapter_entries(adapter, self._numbers, self._shapes)
            table = self._tables[adapter] = dispatch.require().AdapterTable(self._native, entries)
        return table


def adapter_entries(
    adapter: Adapter, numbers: Mapping[str, int], shapes: Mapping[str, tuple[int, int]]
) -> list[AdapterEntry]:
    """One entry a linear. See `AdapterTables`."""
    entries = []
    for name, (down, up) in adapter.weights.items():
        if name not in numbers:
            raise KernelError(f"{name!r} takes no adapter; linears of attention and of dense MLPs do")
        out_features, in_features = shapes[name]
        rank = len(down)
        dispatch.check(down, f"down of {name}", np.float32, (rank, in_features))
        dispatch.check(up, f"up of {name}", np.float32, (out_features, rank))
        entries.append((numbers[name], down, up, adapter.scale_of(name)))
    return entries
