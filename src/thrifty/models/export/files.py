"""Which files of other programs hold a stored linear with its values as they are."""

from __future__ import annotations

from thrifty.formats.linear import GroupLinear, PackedLinear, ZeroPointLinear
from thrifty.models.export.gguf_blocks import writable


def files_of(linear: PackedLinear) -> list[str]:
    """Such as "GGUF Q4_0", "GPTQ", "AWQ"."""
    files = [] if (kind := writable(linear)) is None else [f"GGUF {kind}"]
    if is_integer(linear):
        files.append("GPTQ")
        if linear.bits == 4:  # type: ignore[attr-defined]
            files.append("AWQ")
    return files


def is_integer(linear: PackedLinear) -> bool:
    """Whether a linear is scale·(code − zero) with codes of 4 or 8 bits and a whole number for zero."""
    if isinstance(linear, GroupLinear):
        return linear.bits in (4, 8) and linear.minimums is None and linear.codebook is None
    return isinstance(linear, ZeroPointLinear) and linear.bits in (4, 8)
