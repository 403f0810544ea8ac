"""The door to stored linear weights: `GroupLinear` (2, 3, 4, 5, 8 bit), `ZeroPointLinear` (2, 3, 4, 8 bit with zero
points), `SuperblockLinear` (two levels of scales), `CodebookLinear` (codes into a table), `DenseLinear` (bf16, fp16,
fp32), `SignLinear` (binary, ternary), `BitPlaneLinear` (1 to 8 bit, activations too), `RowTableLinear` (codes into a
table of each row), `VectorLinear` (codes of vectors), `SparseLinear` (single weights on top of another),
`LowRankLinear` (any of them with a product of low rank), `TensorTrainLinear` (a chain of small ones), `PairedLinear`
(two weights in the same words), `TokenWiseLinear` (4, 8 bit for activations with one scale a row), `Sparse24Linear`
(two of every four columns), their base.
"""

from __future__ import annotations

from thrifty.formats.bit_planes import BitPlaneLinear
from thrifty.formats.codebook import CodebookLinear
from thrifty.formats.dense import DenseLinear
from thrifty.formats.group import GroupLinear
from thrifty.formats.low_rank import LowRankLinear
from thrifty.formats.packed import PackedLinear
from thrifty.formats.paired import PairedLinear
from thrifty.formats.row_table import RowTableLinear
from thrifty.formats.signs import SignLinear
from thrifty.formats.sparse import SparseLinear
from thrifty.formats.sparse_2_4 import Sparse24Linear
from thrifty.formats.superblock import SuperblockLinear
from thrifty.formats.tensor_train import TensorTrainLinear
from thrifty.formats.token_wise import TokenWiseLinear
from thrifty.formats.vector import VectorLinear
from thrifty.formats.zero_point import ZeroPointLinear

__all__ = [
    "BitPlaneLinear",
    "CodebookLinear",
    "DenseLinear",
    "GroupLinear",
    "LowRankLinear",
    "PackedLinear",
    "PairedLinear",
    "RowTableLinear",
    "SignLinear",
    "Sparse24Linear",
    "SparseLinear",
    "SuperblockLinear",
    "TensorTrainLinear",
    "TokenWiseLinear",
    "VectorLinear",
    "ZeroPointLinear",
]
