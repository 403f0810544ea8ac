"""The door to stored linear weights: `GroupLinear` (4, 5, 8 bit), `ZeroPointLinear` (4, 8 bit with zero points),
`SuperblockLinear` (two levels of scales), `CodebookLinear` (codes into a table), `DenseLinear` (bf16, fp16, fp32),
their base; `TokenWiseLinear` (4, 8 bit for activations with one scale a row).
"""

from __future__ import annotations

from thrifty.formats.codebook import CodebookLinear
from thrifty.formats.dense import DenseLinear
from thrifty.formats.group import GroupLinear
from thrifty.formats.packed import PackedLinear
from thrifty.formats.superblock import SuperblockLinear
from thrifty.formats.token_wise import TokenWiseLinear
from thrifty.formats.zero_point import ZeroPointLinear

__all__ = [
    "CodebookLinear", "DenseLinear", "GroupLinear", "PackedLinear", "SuperblockLinear", "TokenWiseLinear",
    "ZeroPointLinear",
]  # fmt: skip
