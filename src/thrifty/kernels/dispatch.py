"""The door to the native kernels: finds the compiled module, and gives it arrays as it takes them."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Array, Bytes, Floats, Integers
from thrifty.errors import KernelError

SWITCH = "THRIFTY_NATIVE"  # environment variable; 0 turns the native kernels off
THREADS = "THRIFTY_THREADS"  # environment variable; threads of the native pool where nobody asks for another number
MISSING = (
    "Thrifty's native kernels are not built for this Python. "
    "Install a wheel for it, or build them with `pip install .` (or `pip install -e .`) in the source tree"
)


class Linear(Protocol):
    """A stored linear layer as the kernels see it (formats/packed.py)."""

    out_features: int
    in_features: int

    @property
    def label(self) -> str:
        """The format's short name."""
        ...

    def native(self) -> tuple[str, Mapping[str, Any]] | None:
        """The native layout's name and what it is made of; None where native code has none."""
        ...


@functools.cache
def native() -> ModuleType | None:
    """The compiled module, or None where it is turned off or not built (one warning says how to build it).

    The environment is read at the first call. Raises KernelError for a value of THRIFTY_NATIVE other than 0 or 1, and
    for a THRIFTY_THREADS that this machine does not take.
    """
    switch = os.environ.get(SWITCH, "1")
    if switch not in ("0", "1"):
        raise KernelError(f"{SWITCH} is {switch!r}; it must be 0 (no native code) or 1 (native kernels)")
    if switch == "0":
        return None
    try:
        module = importlib.import_module("thrifty.kernels.native._native")
    except ImportError as error:
        warnings.warn(f"{MISSING}; set {SWITCH}=0 to silence this ({error})", RuntimeWarning, stacklevel=2)
        return None
    asked = os.environ.get(THREADS)
    if asked is not None:
        _resize(module, int(asked) if asked.isdecimal() else 0, f"{THREADS} is {asked!r}")
    return module


def set_threads(threads: int) -> None:
    """Threads of the native pool (where there is one). Raises KernelError with the numbers that work."""
    if threads < 1:
        raise KernelError(f"threads = {threads}; use 1 or more")
    module = native()
    if module is not None:
        _resize(module, threads, f"threads = {threads}")


def threads() -> int:
    """Threads of the native pool; 1 where native code is off."""
    module = native()
    return 1 if module is None else int(module.threads())


def _resize(module: ModuleType, threads: int, what: str) -> None:
    try:
        module.set_threads(threads)
    except ValueError as error:
        most = module.available_threads()
        raise KernelError(f"{what}; this process may use 1 to {most} processors") from error


def require() -> ModuleType:
    """The compiled module. Raises KernelError with the way out where there is none."""
    module = native()
    if module is None:
        raise KernelError(MISSING if os.environ.get(SWITCH, "1") == "1" else f"native kernels are off: unset {SWITCH}")
    return module


def matmul(linear: Linear, x: Floats) -> Floats:
    """x fp32 [m, in] · Wᵀ → fp32 [m, out] without the bias, activations as int8 per 32 columns (bf16 for bf16 weights).

    A row's result is the same bits whatever m is. Raises KernelError for a wrong shape, type or layout.
    """
    module = require()
    if x.ndim != 2 or x.shape[1] != linear.in_features:
        raise KernelError(f"x has shape {x.shape}, expected [rows, {linear.in_features}]")
    x = check(x, "x", np.float32, x.shape, copy=True)
    y = np.empty((len(x), linear.out_features), np.float32)
    _call(module.matmul, packed(linear), x, y)
    return y


def packed(linear: Linear, bias: Floats | None = None) -> Any:
    """A native Linear over the arrays of a packed linear layer, which it keeps; bias: fp32 [out], added to products.

    Raises KernelError where the arrays do not fit its sizes, or where the kernels do not know its format.
    """
    stored = linear.native()
    if stored is None:
        raise KernelError(f"no native kernel for {type(linear).__name__} {linear.label}")
    layout, arrays = stored
    options = {"bias": bias, "out_features": linear.out_features, "in_features": linear.in_features}
    return _call(require().Linear, layout=layout, **arrays, **options)


def repack(kind: str, raw: Bytes, codes: Array, scales: Array | None = None, minimums: Array | None = None) -> None:
    """Rows of a GGUF file's type ("Q4_0", "Q6_K", "BF16" …) into the arrays of the layer that stores them, bit by bit.

    raw: uint8 [rows, row bytes], rows at any distance; codes: uint8 [tiles, blocks, bytes] or records uint8 [tiles,
    superblocks, bytes] (BF16: uint16 [tiles, pairs, 16, 2]); scales, minimums: fp16 [tiles, groups, 16], None where the
    type has none. Rows behind the last of raw become zero bytes. Raises KernelError for an unknown type, and for arrays
    that do not fit it.
    """
    _call(require().repack, kind, raw, codes, scales, minimums)


def unpack(kind: str, codes: Array, scales: Array | None, minimums: Array | None, raw: Bytes) -> None:
    """The inverse of `repack`: the file's bytes of the first rows, into raw uint8 [rows, row bytes]."""
    _call(require().unpack, kind, codes, scales, minimums, raw)


def attend(
    view: Any,
    layer: int,
    query: Floats,
    *,
    scale: float,
    window: int | None = None,
    softcap: float = 0.0,
    accumulate: Floats | None = None,
) -> Floats:
    """query fp32 [rows, heads, head_dim], the last rows of `view` (a native View), over its slots → fp32, same shape.

    Row i of n sees all slots of its KV head but the last n − 1 − i, of these the last `window` (None: all).
    `accumulate` fp32 [heads, slots], changed in place: each slot's probabilities are added, row after row; slots is
    the largest count of any KV head. Raises KernelError for wrong shapes and where a row would see no slot.
    """
    module = require()
    query = _queries(query, view, layer)
    if window is not None and window < 1:
        raise KernelError(f"attention window {window} must be at least 1 (None for no window)")
    out = np.empty_like(query)
    options = {"window": window or 0, "softcap": softcap, "accumulate": accumulate}
    _call(module.attend, view, layer, query, out, scale=scale, **options)
    return out


def witness(
    view: Any,
    layer: int,
    query: Floats,
    judged: Sequence[tuple[int, int, int]],
    *,
    forced: int,
    scale: float,
    softcap: float = 0.0,
    mean: bool = False,
) -> Floats:
    """The greatest softmax probability that a row of query fp32 [rows, heads, head_dim], the last rows of `view`, gives
    each judged slot: fp32 [kv_heads, most judged slots], 0 behind a head's last.

    judged: by KV head (sinks, low, high): rows see the slots 0..sinks−1, low..high−1, which are judged, and of the
    newest `forced` those up to their own. A KV head's query heads are reduced by their greatest, or their mean. Native
    code holds the scores of at most 64 rows of one KV head meanwhile, fp32. Raises KernelError for wrong shapes and
    slots.
    """
    module = require()
    query = _queries(query, view, layer)
    table = np.zeros((view.kv_heads(layer), max(1, *(high - low for _, low, high in judged))), np.float32)
    options = {"forced": forced, "scale": scale, "softcap": softcap, "mean": mean}
    _call(module.witness, view, layer, query, list(judged), table, **options)
    return table


def attention_map(
    queries: Floats,
    keys: Floats,
    sees: Integers,
    *,
    scale: float,
    softcap: float = 0.0,
    bias: Floats | None = None,
) -> Floats:
    """Softmax probabilities fp32 [rows, slots] of queries fp32 [rows, dim] over keys fp32 [slots, dim], in fp32.

    Row i sees the first sees[i] slots, one at least; its logits are scale·q·k, then softcap·tanh(logit/softcap) where
    softcap > 0, then + bias fp32 [slots], which may be −inf. 0 behind what it sees. A row's bits depend on neither the
    number of rows nor of threads. Raises KernelError for wrong shapes, and where a row sees none or too many.
    """
    module = require()
    queries, keys = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(keys, np.float32)
    out = np.empty((len(queries), len(keys)), np.float32)
    counts = np.ascontiguousarray(sees, np.int64)
    _call(module.attention_map, queries, keys, counts, out, scale=scale, softcap=softcap, bias=bias)
    return out


def append(view: Any, layer: int, keys: Floats, values: Floats) -> None:
    """Write keys and values fp32 [rows, kv_heads, head_dim] behind the last slots of `view`, into its open spans.

    Raises KernelError for wrong shapes and where the open spans have no room.
    """
    _call(view.append, layer, np.ascontiguousarray(keys, np.float32), np.ascontiguousarray(values, np.float32))


def compress(
    source: Bytes, source_format: int, source_capacity: int, target: Bytes, target_format: int, target_capacity: int,
    head_dim: int, first_page: int, tokens: int,
) -> bool:  # fmt: skip
    """Slabs of full precision → slabs of codes, as `kv_batch.quantise`; formats by their ids (formats/kv.py).

    source, target: uint8 [count, slab bytes], rows 64-byte aligned and contiguous. False, with `target` partly written,
    where native code is off, does not take these slabs, or finds numbers that codes cannot hold.
    """
    module = native()
    if module is None:
        return False
    before = module.Slabs(source, source_format, source_capacity)
    after = module.Slabs(target, target_format, target_capacity)
    return bool(_call(module.compress, before, after, head_dim=head_dim, first_page=first_page, tokens=tokens))


def read_slab(
    slab: Bytes, format: int, capacity: int, head_dim: int, start: int, count: int
) -> tuple[Floats, Floats] | None:
    """`count` tokens from `start` of a slab uint8 [slab bytes] of any format (ids: formats/kv.py) as fp32 keys and
    values, each [count, head_dim], to the bit what `kv.read` makes of them. None where native code is off or does not
    take the slab.
    """
    module = native()
    if module is None:
        return None
    keys, values = np.empty((2, count, head_dim), np.float32)
    done = _call(module.read_slab, slab, keys, values, format=format, capacity=capacity, start=start)
    return (keys, values) if done else None


Chosen = tuple[Bytes, int, Integers]
"""Some slots of one head: a slab uint8 [slab bytes], its capacity, and the slots int64 [n]."""


def gather(heads: Sequence[tuple[Bytes, int, Sequence[Chosen]]], format: int, head_dim: int) -> bool:
    """Chosen slots of full-precision slabs → the front of other slabs of the same format (ids: formats/kv.py).

    heads: (target uint8 [slab bytes], its capacity, what it is made of). False, with nothing written, where native code
    is off or does not take these slabs.
    """
    module = native()
    if module is None:
        return False
    return bool(_call(module.gather, heads, format, head_dim))


def check(array: Array, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...], copy: bool = False) -> Array:
    """The array where type, shape and layout are right; `copy` mends type and layout instead.

    Raises KernelError naming what is wrong.
    """
    wanted = np.dtype(dtype)
    if copy:
        array = np.ascontiguousarray(array, wanted)
    if array.dtype != wanted or array.shape != shape:
        raise KernelError(f"{name} is {array.dtype} {array.shape}, expected {wanted} {shape}")
    if not array.flags.c_contiguous:
        raise KernelError(f"{name} must be contiguous")
    return array


def _queries(query: Floats, view: Any, layer: int) -> Floats:
    """As native code takes them. Raises KernelError for another shape than [rows, heads, head_dim]."""
    head_dim = _call(view.head_dim, layer)
    if query.ndim != 3 or query.shape[2] != head_dim:
        raise KernelError(f"query has shape {query.shape}, expected [rows, heads, {head_dim}]")
    return np.ascontiguousarray(query, np.float32)


def _call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Native code's answer; what it refuses is a KernelError."""
    try:
        return function(*arguments, **options)
    except ValueError as error:
        raise KernelError(str(error)) from error
