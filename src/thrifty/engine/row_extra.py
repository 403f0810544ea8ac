"""What rows of a step may be beyond consecutive tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RowExtra:
    """parents: for each row the row of the same sequence in this step that it continues, an earlier one, −1: what is
    committed. None: each continues the one before. At most 64 rows, and no more than a window of the model.
    """

    parents: tuple[int, ...] | None = None
