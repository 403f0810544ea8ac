"""Rotary tables of a plan's rows: computed a block of positions at a time and kept, since every layer and step asks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from thrifty.models.config import RopeConfig
from thrifty.models.rope import depends_on_length, rotation

BLOCK = 128  # positions
LIMIT = 1 << 18  # bytes of blocks that are kept, those last used: they are part of every budget


class RotaryTables:
    """fp32 [n, dimension] of each rope for the rows of a call: a row's cosines, then its sines."""

    def __init__(self, ropes: Sequence[RopeConfig], context: int) -> None:
        """context: the most positions that a sequence has."""
        self.ropes = list(ropes)
        block = sum(4 * rope.dimension * BLOCK for rope in self.ropes)
        self._most = max(2, min(LIMIT // max(block, 1), -(-context // BLOCK)))
        self.nbytes = self._most * block
        self._blocks: OrderedDict[int, list[Tensor]] = OrderedDict()
        self.by_length = any(depends_on_length(rope) for rope in self.ropes)

    def of(self, positions: Tensor, lengths: Tensor | None) -> list[Tensor]:
        """One table a rope. positions: integers [n]; lengths: see `rope.rotation`."""
        first, count = int(positions[0]), len(positions)
        if self.by_length or not (count == 1 or bool((positions.diff() == 1).all())):
            return [torch.cat(rotation(rope, positions, lengths), dim=1) for rope in self.ropes]
        pieces = []
        for number in range(first // BLOCK, (first + count - 1) // BLOCK + 1):
            part = slice(max(0, first - number * BLOCK), min(BLOCK, first + count - number * BLOCK))
            pieces.append([table[part] for table in self._block(number)])
        if len(pieces) == 1:
            return pieces[0]
        return [torch.cat(parts) for parts in zip(*pieces, strict=True)]

    def addresses(self, positions: Sequence[int]) -> tuple[list[int], list[Tensor]]:
        """Where the rows of single positions lie, rope by rope, and what keeps them there; not where `by_length`."""
        blocks = [self._block(position // BLOCK) for position in positions]
        found = []
        for place, rope in enumerate(self.ropes):
            width = 4 * rope.dimension
            for block, position in zip(blocks, positions, strict=True):
                found.append(block[place].data_ptr() + position % BLOCK * width)
        return found, [table for block in blocks for table in block]

    def _block(self, number: int) -> list[Tensor]:
        found = self._blocks.pop(number, None)
        if found is None:
            positions = torch.arange(number * BLOCK, (number + 1) * BLOCK)
            found = [torch.cat(rotation(rope, positions), dim=1) for rope in self.ropes]
            while len(self._blocks) >= self._most:
                self._blocks.popitem(last=False)
        self._blocks[number] = found
        return found
