"""The door to stored linear weights: `GroupLinear` (4, 8 bit), `DenseLinear` (bf16, fp32), their base."""

from __future__ import annotations

from thrifty.formats.dense import DenseLinear
from thrifty.formats.group import GroupLinear
from thrifty.formats.packed import PackedLinear

__all__ = ["DenseLinear", "GroupLinear", "PackedLinear"]
