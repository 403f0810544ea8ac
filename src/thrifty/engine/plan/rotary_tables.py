"""Rotary tables of a plan's rows: computed a block of positions at a time and kept, since every layer and step asks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from thrifty.arrays import Array, Floats, Integers
from thrifty.models.config.model_config import RopeConfig
from thrifty.models.rope import depends_on_length, rotation

BLOCK = 128  # positions
LIMIT = 1 << 18  # bytes of blocks that are kept, those last used: they are part of every budget


class RotaryTables:
    """fp32 [n, dimension] of each rope for the rows of a call: a row's cosines, then its sines."""

    def __init__(self, ropes: Sequence[RopeConfig], context: int) -> None:
        """context: the most positions that a sequence has."""
        self.ropes = list(ropes)
        self.block_bytes = sum(4 * rope.dimension * BLOCK for rope in self.ropes)
        self._most = max(2, min(LIMIT // max(self.block_bytes, 1), -(-context // BLOCK)))
        self.nbytes = self._most * self.block_bytes
        self._blocks: OrderedDict[int, list[Floats]] = OrderedDict()
        self.by_length = any(depends_on_length(rope) for rope in self.ropes)

    def of(self, positions: Array, lengths: Integers | None) -> list[Floats]:
        """One table a rope. positions: integers [n] or [3, n]; lengths: see `rope.rotation`.

        Raises KernelError for three positions a row where a rope takes one.
        """
        positions = positions.astype(np.int64, copy=False)
        if self.by_length or positions.ndim == 2:
            return [np.concatenate(rotation(rope, positions, lengths), axis=1) for rope in self.ropes]
        first, count = int(positions[0]), len(positions)
        if count > 1 and not (np.diff(positions) == 1).all():
            return self._scattered(positions)
        pieces = []
        for number in range(first // BLOCK, (first + count - 1) // BLOCK + 1):
            part = slice(max(0, first - number * BLOCK), min(BLOCK, first + count - number * BLOCK))
            pieces.append([table[part] for table in self.block(number)])
        if len(pieces) == 1:
            return pieces[0]
        return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    def block(self, number: int) -> list[Floats]:
        """The tables of positions 128·number and the 127 behind it; not where `by_length`."""
        tables = self._blocks.pop(number, None)
        if tables is None:
            positions = np.arange(number * BLOCK, (number + 1) * BLOCK)
            tables = [np.concatenate(rotation(rope, positions), axis=1) for rope in self.ropes]
            while len(self._blocks) >= self._most:
                self._blocks.popitem(last=False)
        self._blocks[number] = tables
        return tables

    def _scattered(self, positions: Integers) -> list[Floats]:
        tables = [np.empty((len(positions), rope.dimension), np.float32) for rope in self.ropes]
        numbers, places = positions // BLOCK, positions % BLOCK
        for number in np.unique(numbers):
            chosen = numbers == number
            for table, block in zip(tables, self.block(int(number)), strict=True):
                table[chosen] = block[places[chosen]]
        return tables
