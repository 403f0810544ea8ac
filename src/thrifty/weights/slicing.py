"""Some rows and columns of a linear, in its own format where that holds them exactly."""

from __future__ import annotations

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear
from thrifty.kernels.reference import packing

Chosen = Integers | None  # int64 [size]: place i takes what was at chosen[i]; None: all


def take(linear: PackedLinear, rows: Chosen = None, columns: Chosen = None) -> PackedLinear:
    """The linear [rows, columns] of these outputs and inputs, its bias with them; itself where both are None.

    Plain and bf16 weights keep their type. Codes in groups keep their codes where the columns are whole groups. All
    else becomes plain fp32 with the same values, for a technique behind it to store.
    """
    if rows is None and columns is None:
        return linear
    bias = linear.bias if linear.bias is None or rows is None else linear.bias[rows]
    if isinstance(linear, GroupLinear) and (columns is None or _are_groups(linear, columns)):
        return _codes(linear, rows, columns, bias)
    weight = linear.dequantize() if rows is None else linear.rows(rows)
    weight = weight if columns is None else np.ascontiguousarray(weight[:, columns])
    if isinstance(linear, DenseLinear):
        return DenseLinear.from_weight(weight, linear.weight.dtype, linear.packed, bias=bias)
    return DenseLinear.from_weight(weight, bias=bias)


def _are_groups(linear: GroupLinear, columns: Integers) -> bool:
    """Whether the columns are whole groups, each in its order."""
    if linear.in_features % linear.group or len(columns) % linear.group:
        return False
    grouped = columns.reshape(-1, linear.group)
    first = grouped[:, :1]
    return not (first % linear.group).any() and np.array_equal(grouped, first + np.arange(linear.group))


def _codes(linear: GroupLinear, rows: Chosen, columns: Chosen, bias: Floats | None) -> GroupLinear:
    """By codes, scales and minimums as they are stored."""
    outputs = np.arange(linear.out_features) if rows is None else rows
    inputs = np.arange(linear.in_features) if columns is None else columns
    grouped = slice(None) if columns is None else columns[:: linear.group] // linear.group
    codes = packing.unpack_codes(linear.codes, linear.bits)[outputs][:, inputs].astype(np.int16)
    if linear.bits == 8:
        codes -= 128  # as they are stored, they are not below zero
    scales = packing.unpack_parameters(linear.scales)[outputs][:, grouped]
    minimums = None
    if linear.minimums is not None:
        minimums = packing.unpack_parameters(linear.minimums)[outputs][:, grouped]
    return GroupLinear.from_codes(codes, scales, minimums, linear.bits, linear.group, bias, linear.codebook)
