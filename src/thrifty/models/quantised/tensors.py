"""Checkpoints of compressed-tensors (packed integers, int8, FP8), and of block-scaled FP8."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from thrifty.arrays import Array, Floats, Integers
from thrifty.errors import CheckpointError, ConfigError
from thrifty.models.config.fields import Fields
from thrifty.models.huggingface.safetensors_file import TensorEntry
from thrifty.models.quantised.linears import (
    REMEDY,
    SCALES,
    Codes,
    IntegerCodes,
    TableCodes,
    check_group,
    expect,
    refuse,
    unpacked,
)

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
# Of activations and of the cache: those are rounded by their own values here, more finely than these say.
_UNUSED = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")


@dataclass(frozen=True)
class CompressedTensors:
    """weight_packed int32 [out, in·bits/32] of codes + 2^(bits − 1), or weight int8 or FP8 (e4m3) [out, in];
    weight_scale [out, groups], [out, 1], [1], or a scale for each block of rows and columns.

    w = scale·(code − zero); weight_zero_point is int32 [out·bits/32, groups], packed downwards, or int8 [out, groups].
    Numbers of bits and groups are those of the tensors' shapes.
    """

    block: tuple[int, int] = (128, 128)
    name: str = "compressed-tensors"
    marks: tuple[str, ...] = ("weight_packed", "weight_scale")
    members: tuple[str, ...] = (
        "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", *_UNUSED,
    )  # fmt: skip

    @classmethod
    def from_config(cls, fields: Fields) -> CompressedTensors:
        """Raises ConfigError for a format, or a transformation of the weights, that is not read."""
        for name in ("format", "sparsity_config", "transform_config"):
            _check_plain(fields, name)
        block = (128, 128)
        groups = fields.raw("config_groups")
        for name, group in groups.items() if isinstance(groups, Mapping) else ():
            inner = Fields(group, f"{fields.prefix}config_groups.{name}.")
            if inner.raw("format") is not None:
                _check_plain(inner, "format")
            weights = inner.table("weights")
            given = None if weights is None else weights.raw("block_structure")
            if given is not None:
                block = _block(given, f"{fields.prefix}config_groups.{name}.weights.block_structure")
        return cls(block)

    def check(self, module: str, tensors: Mapping[str, TensorEntry], rows: int, columns: int) -> None:
        if "weight_packed" in tensors:
            bits = self._bits(tensors["weight_packed"], rows, columns)
        else:
            expect(module, tensors, "weight", ("I8", "F8_E4M3"), (rows, columns))
            bits = 8
        scale = expect(module, tensors, "weight_scale", SCALES, *self._scale_shapes(tensors, rows, columns))
        groups = self._groups(scale.shape)
        if not self._is_float(tensors):
            if columns % groups:
                refuse(scale, f"has {groups} groups for {columns} columns")
            try:
                check_group("the group", columns // groups, columns)
            except ConfigError as error:
                refuse(scale, f"has {groups} groups for {columns} columns: {error}")
        if "weight_zero_point" in tensors:
            words = tensors["weight_zero_point"].dtype == "I32"  # packed codes; else a byte each
            shapes = [(math.ceil(rows * bits / 32), groups)] if words else [(rows, groups), scale.shape]
            expect(module, tensors, "weight_zero_point", ("I32", "I8"), *shapes)

    def read(self, tensors: Mapping[str, Array], rows: int, columns: int) -> Codes:
        """Raises CheckpointError where groups are not consecutive columns, or an FP8 number is none."""
        scale = tensors["weight_scale"].astype(np.float32)
        weight = tensors.get("weight")
        if weight is not None and weight.dtype == np.uint8:
            return _float8(weight, scale, self.block)
        scales = scale if scale.ndim == 2 and len(scale) == rows else np.full((rows, 1), scale.reshape(-1)[0])
        group = columns // scales.shape[1]
        indices = tensors.get("weight_g_idx")
        if indices is not None and (indices >= 0).any() and not np.array_equal(indices, np.arange(columns) // group):
            raise CheckpointError(
                "weight_g_idx puts columns into groups by their activations (actorder), which is not supported: use a "
                "checkpoint made with actorder weight or without, or a GGUF file."
            )
        bits = 8 if weight is not None else 32 * tensors["weight_packed"].shape[1] // columns
        if weight is None:
            codes = np.ascontiguousarray(unpacked(np.ascontiguousarray(tensors["weight_packed"]), bits)[:, :columns])
        else:
            codes = weight.view(np.uint8) ^ np.uint8(128)
        return IntegerCodes(codes, scales, _zeros(tensors.get("weight_zero_point"), bits, scales.shape), bits, group)

    def _is_float(self, tensors: Mapping[str, TensorEntry]) -> bool:
        return "weight" in tensors and tensors["weight"].dtype == "F8_E4M3"

    def _scale_shapes(self, tensors: Mapping[str, TensorEntry], rows: int, columns: int) -> tuple[tuple[int, ...], ...]:
        entry = tensors.get("weight_scale")
        groups = entry.shape[1] if entry is not None and len(entry.shape) == 2 else 1
        whole: tuple[tuple[int, ...], ...] = ((), (1,), (rows, 1))
        if self._is_float(tensors):
            return *whole, (math.ceil(rows / self.block[0]), math.ceil(columns / self.block[1]))
        return *whole, (rows, groups)

    def _bits(self, entry: TensorEntry, rows: int, columns: int) -> int:
        for bits in (4, 8):
            if entry.dtype == "I32" and entry.shape == (rows, math.ceil(columns * bits / 32)):
                return bits
        refuse(entry, f"is {entry.dtype} {list(entry.shape)}; {rows} x {columns} codes of 4 or 8 bits are supported")

    @staticmethod
    def _groups(shape: tuple[int, ...]) -> int:
        return shape[1] if len(shape) == 2 else 1


@dataclass(frozen=True)
class Float8:
    """weight FP8 (e4m3) [out, in] beside weight_scale_inv, a scale for each block of rows and columns, or weight_scale,
    one for all. w = scale·weight.
    """

    block: tuple[int, int]
    name: str = "FP8"
    marks: tuple[str, ...] = ("weight_scale_inv", "weight_scale")
    members: tuple[str, ...] = ("weight", "weight_scale_inv", "weight_scale", *_UNUSED)

    @classmethod
    def from_config(cls, fields: Fields) -> Float8:
        """Raises ConfigError for a type or blocks that are not read."""
        kind = fields.text("fmt", "e4m3")
        if kind not in ("e4m3", "float8_e4m3fn"):
            raise ConfigError(f"{fields.prefix}fmt is {kind!r:.80}; e4m3 is supported: {REMEDY}.")
        given = fields.raw("weight_block_size")
        return cls((128, 128) if given is None else _block(given, f"{fields.prefix}weight_block_size"))

    def check(self, module: str, tensors: Mapping[str, TensorEntry], rows: int, columns: int) -> None:
        expect(module, tensors, "weight", ("F8_E4M3",), (rows, columns))
        blocks = math.ceil(rows / self.block[0]), math.ceil(columns / self.block[1])
        if "weight_scale_inv" in tensors:
            expect(module, tensors, "weight_scale_inv", SCALES, blocks)
        else:
            expect(module, tensors, "weight_scale", SCALES, (), (1,), (rows, 1), blocks)

    def read(self, tensors: Mapping[str, Array], rows: int, columns: int) -> Codes:
        scale = tensors["weight_scale_inv" if "weight_scale_inv" in tensors else "weight_scale"]
        return _float8(tensors["weight"], scale.astype(np.float32), self.block)


def _float8(codes: Array, scale: Floats, block: tuple[int, int]) -> TableCodes:
    """codes uint8 [rows, columns]; scale: one, one a row, or one for each block."""
    rows, columns = codes.shape
    if (codes & np.uint8(127) == 127).any():
        raise CheckpointError("it holds an FP8 code that is not a number: the file is damaged; fetch it again.")
    group = -(-columns // 32) * 32
    if scale.size == 1:
        scales = np.full((rows, 1), scale.reshape(-1)[0], np.float32)
    elif scale.shape == (rows, 1):
        scales = scale
    else:
        scales, group = np.repeat(scale, block[0], axis=0)[:rows], block[1]
    return TableCodes(codes, scales, _float8_values(), 8, group)


@cache
def _float8_values() -> Floats:
    """What each byte means in e4m3, fp32 [256]."""
    return np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def _zeros(stored: Array | None, bits: int, shape: tuple[int, ...]) -> Integers | None:
    """Zero points [rows, groups] of codes from 0 on."""
    if stored is None:
        return None
    if stored.dtype == np.int8:
        zeros = stored.astype(np.int64).reshape(-1, 1) if stored.ndim < 2 else stored.astype(np.int64)
        return np.broadcast_to(zeros + (1 << (bits - 1)), shape)
    return unpacked(np.ascontiguousarray(stored.T), bits).T[: shape[0]].astype(np.int64)


def _check_plain(fields: Fields, name: str) -> None:
    """Raise ConfigError for a format that is not read, and for sparse or transformed weights."""
    value: Any = fields.raw(name)
    if name == "format":
        if value is not None and value not in FORMATS:
            known = ", ".join(FORMATS)
            raise ConfigError(f"{fields.prefix}format is {value!r:.80}; supported are {known}: {REMEDY}.")
        return
    if isinstance(value, Mapping) and value.get("format") in ("dense", None) and not value.get("config_groups"):
        return
    if value:
        raise ConfigError(f"{fields.prefix}{name} is {value!r:.80}; it is not supported: {REMEDY}.")


def _block(given: object, field: str) -> tuple[int, int]:
    """Rows and columns of a block of weights that share a scale."""
    if isinstance(given, list) and len(given) == 2:
        rows, columns = given
        if all(isinstance(size, int) and 0 < size <= 1 << 16 for size in given) and columns % 32 == 0:
            return rows, columns
    raise ConfigError(f"{field} is {given!r:.80}; rows and columns, these a multiple of 32, are supported: {REMEDY}.")
