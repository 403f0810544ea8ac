"""What rows of a sequence may be beyond a plain line of tokens. No `RowExtra` at all: they are that."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Floats

if TYPE_CHECKING:
    from thrifty.models.adapters import Adapter

Whole = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class RowExtra:
    """Of consecutive rows of one sequence.

    Each field that is None or empty stands for what a plain row does.
    """

    #: fp32 [rows, hidden]: first hidden states. Rows whose token id is −1 take theirs, all others embed their id.
    embeddings: Floats | None = None
    #: int32 [rows], or [3, rows] for ropes of three axes; None: `start` and what follows it.
    positions: Whole | None = None
    #: The row (index inside these rows, smaller than its own) that a row continues; −1: the committed history. At most
    #: 64 rows, and no more than a window of the model. None: each continues the one before.
    parents: tuple[int, ...] | None = None
    #: int32 [rows]: how many of the rows behind it a row sees as well.
    ahead: Whole | None = None
    #: Low-rank additions to the linears.
    adapter: Adapter | None = None
    #: Layers whose output is wanted (see `Scores.taps`).
    taps: tuple[int, ...] = ()
    #: Layer → fp32 [hidden], added to the layer's output.
    residual: Mapping[int, Floats] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether nothing is set."""
        rows = (self.embeddings, self.positions, self.parents, self.ahead, self.adapter)
        return all(part is None for part in rows) and not self.taps and not self.residual

    def part(self, first: int, stop: int) -> RowExtra:
        """That of rows first..stop−1, counted from the first; `parents` are not cut."""
        return dataclasses.replace(
            self,
            embeddings=None if self.embeddings is None else self.embeddings[first:stop],
            positions=None if self.positions is None else self.positions[..., first:stop],
            ahead=None if self.ahead is None else self.ahead[first:stop],
        )


def embedded(hidden: Floats, tokens: Sequence[int], extra: RowExtra | None) -> Floats:
    """First hidden states [rows, hidden], in place: those that `extra` brings stand for rows without a token id."""
    if extra is not None and extra.embeddings is not None:
        given = np.array(tokens) < 0
        hidden[given] = extra.embeddings[given]
    return hidden


def everyone(rows: int) -> Whole:
    """int32 [rows]: how far ahead each of so many rows sees where all see each other."""
    return np.arange(rows - 1, -1, -1, dtype=np.int32)


def shifted(extra: RowExtra | None, shift: int, start: int, depths: Sequence[int]) -> RowExtra | None:
    """The extra of rows in a sequence whose positions are `shift` away from its rows. depths: of each row, how far it
    lies behind `start`.
    """
    if not shift:
        return extra
    positions = np.array(depths, np.int32) + np.int32(start + shift)
    return dataclasses.replace(extra or RowExtra(), positions=positions)
