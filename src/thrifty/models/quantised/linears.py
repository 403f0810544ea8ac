"""Linears that a checkpoint of safetensors stores quantised, whatever its method: their tensors, and what they become.

A method reads the tensors of one linear into plain codes; the stored form follows from these. All values are those of
the checkpoint: scale·(code − zero), or scale·table[code], in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol

import numpy as np

from thrifty.arrays import Array, Bytes, Floats, Integers
from thrifty.errors import CheckpointError, ConfigError
from thrifty.formats.codebook import CodebookLinear
from thrifty.formats.group import GROUPS, GroupLinear
from thrifty.formats.packed import PackedLinear
from thrifty.formats.zero_point import ZeroPointLinear
from thrifty.models.huggingface.safetensors_file import TensorEntry

REMEDY = "use the unquantised checkpoint, or a GGUF file"
LARGEST_GROUP = max(GROUPS)
SCALES = ("F16", "BF16", "F32")  # types of scales


class Codes(Protocol):
    """A linear [rows, columns] as plain codes."""

    @property
    def exact(self) -> bool:
        """Whether the stored form has the checkpoint's own values."""
        ...

    def part(self, rows: slice) -> Codes:
        """Some of the rows."""
        ...

    def values(self) -> Floats:
        """fp32 [rows, columns]."""
        ...

    def linear(self) -> PackedLinear:
        """The stored form."""
        ...


class Method(Protocol):
    """How a checkpoint is quantised.

    A linear is quantised where one of the tensors `marks` is there beside its name; `members` are all the tensors that
    it may have. `check` raises CheckpointError where they do not fit together, before any is read.
    """

    @property
    def name(self) -> str: ...

    @property
    def marks(self) -> tuple[str, ...]: ...

    @property
    def members(self) -> tuple[str, ...]: ...

    def check(self, module: str, tensors: Mapping[str, TensorEntry], rows: int, columns: int) -> None: ...

    def read(self, tensors: Mapping[str, Array], rows: int, columns: int) -> Codes: ...


@dataclass(frozen=True)
class IntegerCodes:
    """w = scale·(code − zero): codes uint8 [rows, columns] of `bits`, scales fp32 and zeros [rows, groups].

    zeros None: 2^(bits − 1) everywhere. `group` columns share a scale.
    """

    codes: Bytes
    scales: Floats
    zeros: Integers | None
    bits: int
    group: int

    @property
    def exact(self) -> bool:
        return bool((self.scales.astype(np.float16).astype(np.float32) == self.scales).all())

    def part(self, rows: slice) -> IntegerCodes:
        zeros = None if self.zeros is None else self.zeros[rows]
        return replace(self, codes=self.codes[rows], scales=self.scales[rows], zeros=zeros)

    def values(self) -> Floats:
        columns = self.codes.shape[1]
        zeros = self._middle if self.zeros is None else self._spread(self.zeros.astype(np.float32), columns)
        return (self.codes.astype(np.float32) - zeros) * self._spread(self.scales, columns)

    def linear(self) -> PackedLinear:
        whole = self.scales.shape[1] == 1  # one scale a row, of any width
        group = LARGEST_GROUP if whole else min(self.group, LARGEST_GROUP)
        groups = -(-self.codes.shape[1] // group)
        repeats = groups if whole else self.group // group
        scales = np.repeat(self.scales, repeats, axis=1)[:, :groups]
        if self.zeros is None or (self.zeros == self._middle).all():
            codes = self.codes if self.bits == 4 else (self.codes ^ np.uint8(128)).view(np.int8)
            return GroupLinear.from_codes(codes, scales, None, self.bits, group)
        zeros = np.repeat(self.zeros, repeats, axis=1)[:, :groups]
        return ZeroPointLinear.from_codes(self.codes, scales, zeros, self.bits, group)

    @property
    def _middle(self) -> int:
        return 1 << (self.bits - 1)

    def _spread(self, parameters: Floats, columns: int) -> Floats:
        return np.repeat(parameters, self.group, axis=1)[:, :columns]


@dataclass(frozen=True)
class TableCodes:
    """w = scale·table[code]: codes uint8 [rows, columns], scales fp32 [rows, groups], table fp32 [2^bits]."""

    codes: Bytes
    scales: Floats
    table: Floats
    bits: int
    group: int

    @property
    def exact(self) -> bool:
        return True

    def part(self, rows: slice) -> TableCodes:
        return replace(self, codes=self.codes[rows], scales=self.scales[rows])

    def values(self) -> Floats:
        return self.table[self.codes] * np.repeat(self.scales, self.group, axis=1)[:, : self.codes.shape[1]]

    def linear(self) -> PackedLinear:
        return CodebookLinear.from_codes(self.codes, self.scales, self.table, self.bits, self.group)


def modules(
    entries: Iterable[TensorEntry], method: Method
) -> tuple[dict[str, dict[str, TensorEntry]], list[TensorEntry]]:
    """The tensors of each quantised linear, by its name and theirs, and all other tensors."""
    entries = list(entries)
    grouped: dict[str, dict[str, TensorEntry]] = {
        entry.name.removesuffix(f".{mark}"): {}
        for entry in entries
        for mark in method.marks
        if entry.name.endswith(f".{mark}")
    }
    others = []
    for entry in entries:
        place = next(
            (
                (entry.name.removesuffix(f".{member}"), member)
                for member in method.members
                if entry.name.endswith(f".{member}") and entry.name.removesuffix(f".{member}") in grouped
            ),
            None,
        )
        if place is None:
            others.append(entry)
        else:
            grouped[place[0]][place[1]] = entry
    return grouped, others


def expect(
    module: str, tensors: Mapping[str, TensorEntry], name: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]
) -> TensorEntry:
    """The tensor `name` of a quantised linear. Raises CheckpointError where it is missing, or of another type or none
    of the shapes.
    """
    entry = tensors.get(name)
    if entry is None:
        path = next(iter(tensors.values())).path
        raise CheckpointError(f"{path}: tensor '{module}.{name}' is missing.")
    if entry.dtype not in dtypes:
        refuse(entry, f"has type {entry.dtype}; expected {' or '.join(dtypes)}")
    if entry.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        refuse(entry, f"has shape {list(entry.shape)}; expected {wanted}")
    return entry


def refuse(entry: TensorEntry, reason: str) -> NoReturn:
    """Raise a CheckpointError that names the tensor."""
    raise CheckpointError(f"{entry.path}: tensor {entry.name!r} {reason}.")


def check_group(field: str, group: int, columns: int | None = None) -> None:
    """Raise ConfigError unless so many columns can share a scale: 32, 64, a multiple of 128, or all (−1)."""
    whole = group == -1 or group == columns
    if not whole and group not in GROUPS and (group <= 0 or group % LARGEST_GROUP):
        raise ConfigError(
            f"{field} is {group}; groups of 32, 64, a multiple of 128, or -1 for whole rows are supported: {REMEDY}."
        )


def unpacked(words: Array, bits: int) -> Bytes:
    """int32 [rows, n] → their codes uint8 [rows, n·32/bits], lowest bits first."""
    count = 32 // bits
    unsigned = words.view(np.uint32)
    codes = np.empty((*words.shape, count), np.uint8)
    for place in range(count):
        codes[..., place] = (unsigned >> np.uint32(bits * place)) & np.uint32((1 << bits) - 1)
    return codes.reshape(len(words), -1)
