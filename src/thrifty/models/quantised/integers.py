"""Checkpoints of GPTQ (arXiv 2210.17323) and AWQ (arXiv 2306.00978), as their packages write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Array
from thrifty.errors import CheckpointError, ConfigError
from thrifty.models.config.fields import Fields
from thrifty.models.huggingface.safetensors_file import TensorEntry
from thrifty.models.quantised.linears import REMEDY, SCALES, IntegerCodes, check_group, expect, unpacked

# The output column, of eight, that each four bits of a word of AWQ's belong to.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def ones(bits: int) -> np.uint32:
    """A word of 32 bits with 1 in every code of `bits`."""
    return np.uint32(sum(1 << place for place in range(0, 32, bits)))


@dataclass(frozen=True)
class GPTQ:
    """qweight int32 [in·bits/32, out], the codes of consecutive inputs from the lowest bits up; qzeros int32 [groups,
    out·bits/32], likewise of consecutive outputs; scales [groups, out]; g_idx int32 [in], the group of each input.

    w = scale·(code − zero). Files of version 1 (`checkpoint_format` gptq) hold zero − 1, those of version 2 (gptq_v2)
    the zero itself. What writes and reads version 1 (GPTQModel, and transformers through it) subtracts and adds 1 in
    all codes of a word at once, as one 32-bit number: a zero of 0 borrows from the code above it.
    """

    bits: int
    group: int
    version: int
    name: str = "GPTQ"
    marks: tuple[str, ...] = ("qweight",)
    members: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")

    @classmethod
    def from_config(cls, fields: Fields) -> GPTQ:
        """Raises ConfigError for bits, a group or a format that is not read."""
        bits = fields.integer("bits", low=1, high=64)
        if bits not in (4, 8):
            raise ConfigError(f"{fields.prefix}bits is {bits}; GPTQ of 4 and of 8 bits is supported: {REMEDY}.")
        group = -1 if fields.raw("group_size") == -1 else fields.integer("group_size", low=1, high=1 << 20)
        check_group(f"{fields.prefix}group_size", group)
        form = fields.text("checkpoint_format", "gptq")
        if form not in ("gptq", "gptq_v2"):
            raise ConfigError(
                f"{fields.prefix}checkpoint_format is {form!r:.80}; gptq and gptq_v2 are supported: {REMEDY}."
            )
        if fields.raw("dynamic"):
            raise ConfigError(f"{fields.prefix}dynamic: settings of single layers are not supported: {REMEDY}.")
        return cls(bits, group, 2 if form == "gptq_v2" else 1)

    def check(self, module: str, tensors: Mapping[str, TensorEntry], rows: int, columns: int) -> None:
        group = columns if self.group == -1 else self.group
        groups = -(-columns // group)
        expect(module, tensors, "qweight", ("I32",), (columns * self.bits // 32, rows))
        expect(module, tensors, "qzeros", ("I32",), (groups, rows * self.bits // 32))
        expect(module, tensors, "scales", SCALES, (groups, rows))
        if "g_idx" in tensors:
            expect(module, tensors, "g_idx", ("I32",), (columns,))

    def read(self, tensors: Mapping[str, Array], rows: int, columns: int) -> IntegerCodes:
        """Raises CheckpointError where groups are not consecutive columns."""
        group = columns if self.group == -1 else self.group
        indices = tensors.get("g_idx")
        if indices is not None and not np.array_equal(indices, np.arange(columns) // group):
            raise CheckpointError(
                "g_idx puts columns into groups by their activations (desc_act), which is not supported: use a "
                "checkpoint made with desc_act false or static_groups true, or a GGUF file."
            )
        codes = np.ascontiguousarray(unpacked(np.ascontiguousarray(tensors["qweight"].T), self.bits))
        words = tensors["qzeros"]
        if self.version == 1:
            words = (words.view(np.uint32) + ones(self.bits)).view(np.int32)  # with its carries
        zeros = unpacked(words, self.bits).T.astype(np.int64)
        return IntegerCodes(codes, tensors["scales"].T.astype(np.float32), zeros, self.bits, group)


@dataclass(frozen=True)
class AWQ:
    """qweight int32 [in, out/8] and qzeros int32 [groups, out/8]: eight outputs a word, in AWQ_ORDER from the lowest
    bits up; scales [groups, out]. w = scale·(code − zero).
    """

    group: int
    name: str = "AWQ"
    marks: tuple[str, ...] = ("qweight",)
    members: tuple[str, ...] = ("qweight", "qzeros", "scales")

    @classmethod
    def from_config(cls, fields: Fields) -> AWQ:
        """Raises ConfigError for bits, a group or a version that is not read."""
        bits = fields.integer("bits", "w_bit", low=1, high=64)
        if bits != 4:
            raise ConfigError(f"{fields.prefix}bits is {bits}; AWQ of 4 bits is supported: {REMEDY}.")
        name = "group_size" if fields.raw("group_size") is not None else "q_group_size"
        group = -1 if fields.raw(name) == -1 else fields.integer(name, low=1, high=1 << 20)
        check_group(f"{fields.prefix}{name}", group)
        version = fields.text("version", "gemm").lower()
        if version != "gemm":
            raise ConfigError(f"{fields.prefix}version is {version!r:.80}; AWQ's gemm layout is supported: {REMEDY}.")
        return cls(group)

    def check(self, module: str, tensors: Mapping[str, TensorEntry], rows: int, columns: int) -> None:
        groups = 1 if self.group == -1 else -(-columns // self.group)
        expect(module, tensors, "qweight", ("I32",), (columns, rows // 8))
        expect(module, tensors, "qzeros", ("I32",), (groups, rows // 8))
        expect(module, tensors, "scales", SCALES, (groups, rows))

    def read(self, tensors: Mapping[str, Array], rows: int, columns: int) -> IntegerCodes:
        group = columns if self.group == -1 else self.group
        codes = np.ascontiguousarray(self._ordered(tensors["qweight"]).T)
        zeros = self._ordered(tensors["qzeros"]).T.astype(np.int64)
        return IntegerCodes(codes, tensors["scales"].T.astype(np.float32), zeros, 4, group)

    def _ordered(self, words: Array) -> Array:
        """Codes uint8 [n, out], outputs in their own order."""
        stored = unpacked(words, 4).reshape(len(words), -1, len(AWQ_ORDER))
        codes = np.empty_like(stored)
        codes[..., AWQ_ORDER] = stored
        return codes.reshape(len(words), -1)
