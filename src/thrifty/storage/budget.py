"""Sizes as people write them, and as they read them."""

from __future__ import annotations

import math
import operator
import re
from typing import SupportsIndex

from thrifty.errors import BudgetError

_UNITS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*([0-9]+(?:[._][0-9]+)*)\s*([a-zA-Z]*)\s*")


def parse_size(size: int | str, what: str = "memory") -> int:
    """Bytes from 150000000, "150MB" (10⁶), "1.5 GiB" (2³⁰) or "150000000".

    Raises BudgetError that names `what`, the value found and the forms that work.
    """
    count = _written(size) if isinstance(size, str) else _whole(size)
    if count is None:
        shown = " ".join(repr(size).split())
        raise BudgetError(f"{what} = {shown:.60} is not a size; write bytes or a form such as '150MB' or '1GiB'")
    if count <= 0:
        raise BudgetError(f"{what} = {size!r} is not positive; give at least 1 byte")
    return count


def _written(size: str) -> int | None:
    """The bytes that a text says, None where it says none."""
    match = _SIZE.fullmatch(size)
    if match is None or match[2].lower() not in _UNITS or match[1].count(".") > 1:
        return None
    count = float(match[1].replace("_", "")) * _UNITS[match[2].lower()]
    return None if math.isinf(count) else int(count)


def _whole(size: SupportsIndex) -> int | None:
    """The whole number that a value of any library is, None where it is none; truth values are none."""
    if isinstance(size, bool) or str(getattr(size, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(size)
    except (TypeError, ValueError):
        return None


def format_size(count: float) -> str:
    """Bytes for people, in decimal units: 1_500_000 → "1.5 MB"."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= scale:
            return f"{count / scale:.4g} {unit}"
    return f"{count:.0f} bytes"
