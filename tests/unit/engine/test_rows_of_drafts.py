"""The rows that a draft becomes: the places of lines and trees, also where positions are not the rows' numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from thrifty.decoding.draft import NO_DRAFT, Draft
from thrifty.engine.plan.row_options import positions
from thrifty.engine.proposing import rows_of
from thrifty.engine.row_extra import RowExtra

LINE, TREE = Draft((7, 8, 9)), Draft((7, 8, 9, 6), (-1, -1, 0, 2))
STEERED = RowExtra(residual={0: np.zeros(4, np.float32)})


def sequence(shift: int, extra: RowExtra | None = None) -> Any:
    return SimpleNamespace(cache=object(), tokens=[1, 2, 3, 4, 5], computed=4, shift=shift, extra=extra)


@pytest.mark.parametrize("shift", [0, 3, -2])
@pytest.mark.parametrize(
    ("draft", "depths"), [(NO_DRAFT, [0]), (LINE, [0, 1, 2, 3]), (TREE, [0, 1, 1, 2, 3])], ids=["none", "line", "tree"]
)
def test_rows_lie_as_deep_as_their_tokens(draft: Draft, depths: list[int], shift: int) -> None:
    for extra in (None, STEERED):
        rows = rows_of(sequence(shift, extra), draft)
        assert list(rows.tokens) == [5, *draft.tokens] and (rows.start, rows.length) == (4, 5 + max(depths))
        assert positions([rows]).tolist() == [4 + shift + depth for depth in depths]
        assert (rows.extra is None) == (extra is None and draft.parents is None and not shift)
        if extra is not None:
            assert rows.extra is not None and rows.extra.residual == STEERED.residual
    if draft is TREE:
        assert rows.extra is not None and rows.extra.parents == (-1, 0, 0, 1, 3)
