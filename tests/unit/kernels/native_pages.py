"""What the tests of the native kernels share: instruction sets to try, aligned memory, views built from pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from thrifty.arrays import Array, Bytes, Floats
from thrifty.formats import kv
from thrifty.kernels import dispatch
from thrifty.kernels.reference.attention import Span

ISAS = ("avx512", "avx2", "portable")
QUICK_ISAS = ("avx512", "avx2", pytest.param("portable", marks=pytest.mark.long))
"""For tests of many cases: the portable one, several times slower, is in `make test` alone."""
EXACT = ("avx512", "avx2")  # these fuse multiply and add as the contract of the numerics says


def native() -> Any:
    """The compiled module; a test run without it is not a test run."""
    module = dispatch.native()
    if module is None:
        pytest.skip("the native kernels are not built")
    return module


@contextmanager
def using(isa: str) -> Iterator[Any]:
    """The module with this instruction set forced; skips where the processor lacks it."""
    module = native()
    if not module.isa_available(isa):
        pytest.skip(f"this processor has no {isa}")
    module.force_isa(isa)
    try:
        yield module
    finally:
        module.force_isa("auto")


def aligned(size: int, fill: int = 0) -> Bytes:
    """uint8 [size] at an address that is a multiple of 64."""
    whole = np.full(size + 64, fill, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + size]


def normal(*shape: int, seed: int = 0) -> Floats:
    """fp32 numbers of the normal distribution, the same ones at every call."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@dataclass
class Pages:
    """A native view, the memory behind it, and per KV head the same spans for the reference.

    slabs: per KV head (format, tokens, capacity, slab) of each span.
    """

    view: Any
    memory: list[Array] = field(default_factory=list)
    spans: list[list[Span]] = field(default_factory=list)
    slabs: list[list[tuple[str, int, int, Bytes]]] = field(default_factory=list)
    formats: set[str] = field(default_factory=set)


def pages(
    kv_heads: int, head_dim: int, pieces: Sequence[tuple[str, int, int]], seed: int = 0, bias: bool = False
) -> Pages:
    """One layer; pieces: (format, tokens, capacity) of each span, the same for all heads. Unused slots hold NaN."""
    generator = np.random.default_rng(seed)
    made = Pages(native().View(1, kv_heads, head_dim), spans=[[] for _ in range(kv_heads)])
    made.slabs = [[] for _ in range(kv_heads)]
    made.formats = {name for name, _, _ in pieces}
    for head in range(kv_heads):
        for name, tokens, capacity in pieces:
            keys, values = generator.standard_normal((2, tokens, head_dim), np.float32)
            slab = aligned(kv.slab_bytes(name, capacity, head_dim), fill=0xFF)
            if tokens:
                kv.write(name, slab, capacity, head_dim, 0, keys, values)
            extra = generator.standard_normal(capacity, np.float32) if bias else None
            made.view.push(0, head, slab, tokens, capacity, kv.FORMATS.index(name), bias=extra, sealed=True)
            stored = kv.read(name, slab, capacity, head_dim, 0, tokens)
            made.spans[head].append(Span(*stored, None if extra is None else extra[:tokens]))
            made.slabs[head].append((name, tokens, capacity, slab))
            made.memory += [slab] if extra is None else [slab, extra]
    return made


def open_view(layers: int, kv_heads: int, head_dim: int, capacity: int, format: str = "bf16") -> Pages:
    """Empty pages of 64 tokens for `capacity` tokens in every layer and head."""
    made = Pages(native().View(layers, kv_heads, head_dim))
    size = kv.slab_bytes(format, kv.PAGE, head_dim)
    for _ in range(-(-capacity // kv.PAGE)):
        for layer in range(layers):
            for head in range(kv_heads):
                slab = aligned(size, fill=0xFF)
                made.view.push(layer, head, slab, 0, kv.PAGE, kv.FORMATS.index(format))
                made.memory.append(slab)
    return made
