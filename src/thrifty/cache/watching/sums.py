"""Attention column sums of a sequence, as native code adds to them: one fp32 table a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.slots.places import Places
from thrifty.formats.kv import PAGE


@dataclass(frozen=True)
class Accumulator:
    """Where native attention adds the probabilities of a sequence's rows.

    layers: the model layers that collect, in the order of the table. sums: fp32 [layers, heads, places] where all rows
    are added up, in their order; [rows, layers, heads, places] where each row goes apart. heads: the most of any layer;
    one that has fewer leaves the last ones alone.
    """

    layers: tuple[int, ...]
    sums: Floats


class ColumnSums:
    """Sums by layer, fp32 [heads, width]: column i belongs to place i of the query head's KV head, 0 behind the last.

    A place is a slot or a hole (`Places`), as attention counts them. While decoding, all layers are one table. Rows
    that may still be rejected have tables of their own until `commit`.
    """

    def __init__(self, model: ModelInfo) -> None:
        self.layers: dict[int, Floats] = {}
        self._model = model
        self._global = model.policy_layers
        self._table: Floats | None = None
        self._rows: Floats | None = None
        self._open = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(sums.nbytes for sums in self.layers.values()) + (0 if self._rows is None else self._rows.nbytes)

    def head(self, layer: int, head: int) -> Floats:
        """A KV head's part of a layer, [group, width], by places; shares its memory."""
        group = self._model.of(layer).group
        return self.layers[layer][head * group : (head + 1) * group]

    def copies(self, layer: int) -> list[Floats]:
        """A layer's sums, [group, width] a KV head, in memory of their own."""
        return [self.head(layer, head).copy() for head in range(self._model.of(layer).kv_heads)]

    def slots(self, layer: int, head: int, places: Places | None) -> int:
        """How many slots of a head the table has columns for."""
        width = self.layers[layer].shape[1]
        return width if places is None else max(0, places.slots_in(head, width))

    def of_slots(self, layer: int, head: int, count: int, places: Places | None) -> Floats:
        """The sums of a head's first `count` slots, [group, count], zero where there are none; a copy or not."""
        sums = self.head(layer, head)
        if places is None and count <= sums.shape[1]:
            return sums[:, :count]
        columns = np.arange(count) if places is None else places.of(head, count)
        known = columns[: columns.searchsorted(sums.shape[1])]
        slots = np.zeros((len(sums), count), np.float32)
        slots[:, : len(known)] = sums[:, known]
        return slots

    def add(self, layer: int, head: int, more: Floats) -> None:
        """Add [group, places] to a KV head's sums; places may have grown."""
        self._widen(layer, more.shape[1])
        self.head(layer, head)[:, : more.shape[1]] += more

    def replace(self, layer: int, heads: Sequence[Floats], places: Places | None = None) -> None:
        """A layer's sums anew, [group, slots] a KV head: memory of their own. places: those of the slots."""
        columns: list[slice | Integers]
        if places is None:
            columns, width = [slice(sums.shape[1]) for sums in heads], max(sums.shape[1] for sums in heads)
        else:
            lists = [places.of(head, sums.shape[1]) for head, sums in enumerate(heads)]
            columns, width = [*lists], max(int(own[-1]) + 1 if len(own) else 0 for own in lists)
        if self._table is not None and layer in self.layers and width <= self._table.shape[2]:
            self.layers[layer][:] = 0
        else:
            self._apart()
            self.layers[layer] = np.zeros((self._model.of(layer).heads, width), np.float32)
        for head, sums in enumerate(heads):
            self.head(layer, head)[:, columns[head]] = sums

    def share(self, layer: int, source: int) -> None:
        """`layer` has the places of `source` from now on, and their sums."""
        if layer in self.layers and source in self.layers:
            self.replace(layer, self.copies(source))

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
        other.layers = {layer: sums.copy() for layer, sums in self.layers.items()}
        return other

    # --- rows that native code computes --------------------------------------------------------------

    def of_prompt(self, layer: int | None, places: int) -> Accumulator:
        """Where a prompt's rows are added up. layer: the global one in work, None for all of them; places: its most."""
        if layer is not None:
            return Accumulator((layer,), self._widen(layer, places)[None])
        return Accumulator(self._global, self._together(places))

    def of_rows(self, rows: int, places: int) -> Accumulator:
        """Where the next rows' probabilities go, each row's apart, until `commit` or `truncate`. places: the most of
        any layer, these rows included.
        """
        table = self._together(places)
        if self._rows is None or self._rows.shape[1:] != table.shape or len(self._rows) < rows:
            self._rows = None
            self._rows = np.zeros((rows, *table.shape), np.float32)
        else:
            self._rows[:rows] = 0
        self._open = rows
        return Accumulator(self._global, self._rows[:rows])

    def truncate(self, n: int) -> None:
        """Reject the newest n rows."""
        self._open = max(0, self._open - n)

    def keep_rows(self, rows: Sequence[int], committed: Mapping[int, Sequence[int]]) -> None:
        """See `Collector.keep_rows`."""
        if self._rows is None or not self._open:
            return
        chosen = self._rows[np.array(rows, np.int64)]
        for place, layer in enumerate(self._global):
            group = self._model.of(layer).group
            for head, first in enumerate(committed[layer]):
                own = slice(head * group, (head + 1) * group)
                chosen[:, place, own] = moved(chosen[:, place, own], rows, first)
        self._rows[: len(rows)] = chosen

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

    def _widen(self, layer: int, places: int) -> Floats:
        """The layer's sums with room for `places` columns."""
        held = self.layers.get(layer)
        if held is None or held.shape[1] < places:
            self._apart()
            wider = np.zeros((self._model.of(layer).heads, places), np.float32)
            if held is not None:
                wider[:, : held.shape[1]] = held
            self.layers[layer] = wider
        return self.layers[layer]

    def _together(self, places: int) -> Floats:
        """All global layers as one table [layers, heads, width] with room for `places` columns."""
        if self._table is None or self._table.shape[2] < places:
            self._rows = None
            widest = max((sums.shape[1] for sums in self.layers.values()), default=0)
            width = -(-max(places, widest) // PAGE) * PAGE
            table = np.zeros((len(self._global), self._model.most_heads, width), np.float32)
            for place, layer in enumerate(self._global):
                held, heads = self.layers.get(layer), self._model.of(layer).heads
                if held is not None:
                    table[place, :heads, : held.shape[1]] = held
                self.layers[layer] = table[place, :heads]
            self._table = table
        return self._table

    def _apart(self) -> None:
        """Let the layers have memory of their own."""
        if self._table is not None:
            self.layers = {layer: sums.copy() for layer, sums in self.layers.items()}
            self._table = self._rows = None


def moved(probabilities: Floats, rows: Sequence[int], first: int) -> Floats:
    """[..., places] of kept rows, of which the places of rows `rows` come first behind the committed ones, `first`, and
    the others have none.
    """
    width = probabilities.shape[-1]
    places = [first + row for row in rows if first + row < width]
    result = np.zeros_like(probabilities)
    result[..., :first] = probabilities[..., :first]
    result[..., first : first + len(places)] = probabilities[..., places]
    return result
