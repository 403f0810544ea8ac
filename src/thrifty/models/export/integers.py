"""Linears as the packages of GPTQ and AWQ store them: the inverse of `models.quantised.integers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Array, Bytes
from thrifty.errors import CheckpointError
from thrifty.formats.linear import GroupLinear, PackedLinear, ZeroPointLinear
from thrifty.kernels.reference import packing
from thrifty.models.export.files import is_integer
from thrifty.models.quantised.integers import AWQ_ORDER, ones


@dataclass(frozen=True)
class IntegerLinear:
    """w = scale·(code − zero). codes, uint8 [in, out]; zeros, uint8, and scales, fp16 [groups, out]."""

    codes: Bytes
    zeros: Bytes
    scales: Array
    bits: int

    @staticmethod
    def of(linear: PackedLinear) -> IntegerLinear:
        """As a linear stores it, for which `is_integer` must hold."""
        assert isinstance(linear, GroupLinear | ZeroPointLinear) and is_integer(linear)
        rows, columns = linear.out_features, linear.in_features
        codes = packing.unpack_codes(linear.codes, linear.bits)[:rows, :columns]
        scales = packing.unpack_parameters(linear.scales)[:rows]
        if isinstance(linear, ZeroPointLinear):
            zeros = packing.unpack_parameters(linear.zeros)[:rows]
        else:
            zeros = np.full(scales.shape, 1 << (linear.bits - 1), np.uint8)
        return IntegerLinear(
            np.ascontiguousarray(codes.T), np.ascontiguousarray(zeros.T), np.ascontiguousarray(scales.T), linear.bits
        )


def check_sizes(name: str, linear: PackedLinear, bits: int) -> None:
    """Raise CheckpointError where the codes of a linear do not fill words of 32 bits."""
    per = 32 // bits
    for what, size in (("rows", linear.out_features), ("columns", linear.in_features)):
        if size % per:
            raise CheckpointError(
                f"tensor '{name}' has {size} {what}; GPTQ and AWQ pack {per} codes of {bits} bits into a word: leave "
                "it in 16 bits (skip), or export to GGUF"
            )


def gptq_tensors(linear: IntegerLinear, group: int, version: int) -> Mapping[str, Array]:
    """qweight, qzeros, scales and g_idx. Files of version 1 hold zero − 1: see `models.quantised.integers.GPTQ`."""
    columns, zeros = len(linear.codes), _words(linear.zeros, linear.bits)
    if version == 1:
        zeros = (zeros.view(np.uint32) - ones(linear.bits)).view(np.int32)
    return {
        "qweight": _words(linear.codes.T, linear.bits).T.copy(),
        "qzeros": zeros,
        "scales": linear.scales,
        "g_idx": (np.arange(columns) // group).astype(np.int32),
    }


def awq_tensors(linear: IntegerLinear) -> Mapping[str, Array]:
    """qweight, qzeros and scales: eight outputs a word, in AWQ_ORDER from the lowest bits up."""
    return {
        "qweight": _words(_ordered(linear.codes), 4),
        "qzeros": _words(_ordered(linear.zeros), 4),
        "scales": linear.scales,
    }


def _ordered(codes: Bytes) -> Bytes:
    return codes.reshape(len(codes), -1, len(AWQ_ORDER))[..., AWQ_ORDER].reshape(len(codes), -1)


def _words(codes: Bytes, bits: int) -> Array:
    """Codes uint8 [n, m] below 2^bits → int32 [n, m·bits/32], the first in the lowest bits."""
    per = 32 // bits
    parts = np.ascontiguousarray(codes).reshape(len(codes), -1, per).astype(np.uint32)
    words = np.zeros(parts.shape[:2], np.uint32)
    for place in range(per):
        words |= parts[..., place] << np.uint32(bits * place)
    return words.view(np.int32)
