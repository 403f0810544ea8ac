"""Attention column sums of a sequence, as native code adds to them: one fp32 table a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.cache.model_info import ModelInfo
from thrifty.formats.kv import PAGE


@dataclass(frozen=True)
class Accumulator:
    """Where native attention adds the probabilities of a sequence's rows.

    layers: the address of each layer's fp32 [heads, stride], 0 where nothing is collected. row: floats from one row's
    place to the next's, 0 where all rows are added up, in their order.
    """

    layers: list[int]
    stride: int
    row: int = 0


class ColumnSums:
    """Sums by layer, fp32 [heads, width]: column i belongs to slot i of the query head's KV head, 0 behind the last.

    While decoding, all layers are one table. Rows that may still be rejected have tables of their own until `commit`.
    """

    def __init__(self, model: ModelInfo) -> None:
        self.layers: dict[int, Tensor] = {}
        self._model = model
        self._global = model.layers_with(None)
        self._table: Tensor | None = None
        self._rows: Tensor | None = None
        self._open = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(one.nbytes for one in self.layers.values()) + (0 if self._rows is None else self._rows.nbytes)

    def head(self, layer: int, head: int) -> Tensor:
        """A KV head's part of a layer, [group, width]; a view."""
        group = self._model.group
        return self.layers[layer][head * group : (head + 1) * group]

    def add(self, layer: int, head: int, more: Tensor) -> None:
        """Add [group, slots] to a KV head's sums; slots may have grown."""
        self._widen(layer, more.shape[1])
        self.head(layer, head)[:, : more.shape[1]] += more

    def replace(self, layer: int, heads: Sequence[Tensor]) -> None:
        """A layer's sums anew, [group, slots] a KV head."""
        width = max(one.shape[1] for one in heads)
        padded = torch.cat([torch.nn.functional.pad(one, (0, width - one.shape[1])) for one in heads])
        if self._table is not None and layer in self.layers and width <= self._table.shape[2]:
            self.layers[layer].zero_()[:, :width] = padded
        else:
            self._apart()
            self.layers[layer] = padded

    def forget(self, layer: int) -> None:
        """Drop a layer's sums."""
        self._apart()
        self.layers.pop(layer, None)

    def clear(self) -> None:
        """Drop everything."""
        self.layers, self._table, self._rows, self._open = {}, None, None, 0

    def copy(self) -> ColumnSums:
        """The committed sums, in memory of their own."""
        other = ColumnSums(self._model)
        other.layers = {layer: one.clone() for layer, one in self.layers.items()}
        return other

    # --- rows that native code computes --------------------------------------------------------------

    def of_prompt(self, layer: int | None, slots: int) -> Accumulator:
        """Where a prompt's rows are added up. layer: the one in work, None for all of them; slots: its most slots."""
        addresses = [0] * self._model.layers
        if layer is not None:
            if self._model.windows[layer] is None:
                addresses[layer] = self._widen(layer, slots).data_ptr()
            return Accumulator(addresses, self.layers[layer].shape[1] if addresses[layer] else 0)
        table = self._together(slots)
        for one in self._global:
            addresses[one] = self.layers[one].data_ptr()
        return Accumulator(addresses, table.shape[2])

    def of_rows(self, rows: int, slots: int) -> Accumulator:
        """Where the next rows' probabilities go, each row's apart, until `commit` or `truncate`. slots: the most of
        any layer, these rows included.
        """
        table = self._together(slots)
        if self._rows is None or self._rows.shape[1:] != table.shape or len(self._rows) < rows:
            self._rows = None
            self._rows = torch.zeros(rows, *table.shape)
        else:
            self._rows[:rows].zero_()
        self._open = rows
        addresses = [0] * self._model.layers
        for place, one in enumerate(self._global):
            addresses[one] = self._rows.data_ptr() + place * table[0].nbytes
        return Accumulator(addresses, table.shape[2], table.numel())

    def truncate(self, n: int) -> None:
        """Reject the newest n rows."""
        self._open = max(0, self._open - n)

    def discard(self) -> None:
        """Reject all open rows."""
        self._open = 0

    def commit(self) -> None:
        """Add the rows that are left, one after the other."""
        if self._table is not None and self._rows is not None:
            for row in self._rows[: self._open]:
                self._table += row
        self._open = 0

    # --- inside --------------------------------------------------------------------------------------

    def _widen(self, layer: int, slots: int) -> Tensor:
        """The layer's sums with room for `slots` columns."""
        held = self.layers.get(layer)
        if held is None or held.shape[1] < slots:
            self._apart()
            wider = torch.zeros(self._model.heads, slots)
            if held is not None:
                wider[:, : held.shape[1]] = held
            self.layers[layer] = wider
        return self.layers[layer]

    def _together(self, slots: int) -> Tensor:
        """All global layers as one table [layers, heads, width] with room for `slots` columns."""
        if self._table is None or self._table.shape[2] < slots:
            self._rows = None
            widest = max((one.shape[1] for one in self.layers.values()), default=0)
            width = -(-max(slots, widest) // PAGE) * PAGE
            table = torch.zeros(len(self._global), self._model.heads, width)
            for place, layer in enumerate(self._global):
                held = self.layers.get(layer)
                if held is not None:
                    table[place, :, : held.shape[1]] = held
                self.layers[layer] = table[place]
            self._table = table
        return self._table

    def _apart(self) -> None:
        """Let the layers have memory of their own."""
        if self._table is not None:
            self.layers = {layer: one.clone() for layer, one in self.layers.items()}
            self._table = self._rows = None
