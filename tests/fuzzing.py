"""How many examples a fuzz test draws: all of them in `make test`, a twelfth of them in `make unit`."""

from __future__ import annotations

import os

FEW = 12


def examples(count: int) -> int:
    """`count`, or a twelfth of it where THRIFTY_FEW_EXAMPLES is set, as `make unit` does."""
    return max(1, count // FEW) if os.environ.get("THRIFTY_FEW_EXAMPLES") else count
