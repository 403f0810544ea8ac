"""Rows of one sequence as a tree: which earlier rows of the step each one continues."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thrifty.arrays import Integers


def depths(parents: Sequence[int]) -> list[int]:
    """How many rows of the step lie before each row on its path. parents: see `lineage`."""
    steps: list[int] = []
    for parent in parents:
        steps.append(0 if parent < 0 else steps[parent] + 1)
    return steps


def lineage(parents: Sequence[int]) -> Integers:
    """int64 [rows], at most 64: bit j of a row: its path has row j, itself included (what a native step calls `tree`).

    parents: for each row the earlier row that it continues, −1: what is committed.
    """
    paths: list[int] = []
    for row, parent in enumerate(parents):
        paths.append(1 << row | (0 if parent < 0 else paths[parent]))
    return np.array(paths, np.uint64).view(np.int64)


def line(rows: int) -> range:
    """The parents of rows that each continue the one before."""
    return range(-1, rows - 1)
