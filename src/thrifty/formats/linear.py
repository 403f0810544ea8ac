"""The door to stored linear weights: `GroupLinear` (4, 5, 8 bit), `SuperblockLinear` (two levels of scales),
`DenseLinear` (bf16, fp16, fp32), their base.
"""

from __future__ import annotations

from thrifty.formats.dense import DenseLinear
from thrifty.formats.group import GroupLinear
from thrifty.formats.packed import PackedLinear
from thrifty.formats.superblock import SuperblockLinear

__all__ = ["DenseLinear", "GroupLinear", "PackedLinear", "SuperblockLinear"]
