"""The door to the native kernels: finds the compiled module and checks every buffer before its address is passed on."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from thrifty.errors import KernelError

SWITCH = "THRIFTY_NATIVE"  # environment variable; 0 turns the native kernels off
THREADS = "THRIFTY_THREADS"  # environment variable; threads of the native pool where nobody asks for another number
MISSING = (
    "Thrifty's native kernels are not built for this Python, so the much slower torch reference runs instead. "
    f"Build them with `pip install .` (or `pip install -e .`) in the source tree; set {SWITCH}=0 to silence this."
)


def takes_head_dim(head_dim: int) -> bool:
    """Whether the native kernels take this head dimension: even, 16 to 256, or a multiple of 64 up to 1024."""
    return head_dim % 64 == 0 if 256 < head_dim <= 1024 else head_dim % 2 == 0 and 16 <= head_dim <= 256


class Linear(Protocol):
    """A packed linear layer as the kernels see it (see formats/linear.py): sizes, and either codes or bf16 pairs."""

    out_features: int
    in_features: int


@functools.cache
def native() -> ModuleType | None:
    """The compiled module, or None where it is turned off or not built (one warning says how to build it).

    The environment is read at the first call. Raises KernelError for a value of THRIFTY_NATIVE other than 0 or 1, and
    for a THRIFTY_THREADS that this machine does not take.
    """
    switch = os.environ.get(SWITCH, "1")
    if switch not in ("0", "1"):
        raise KernelError(f"{SWITCH} is {switch!r}; it must be 0 (torch reference) or 1 (native kernels)")
    if switch == "0":
        return None
    try:
        module = importlib.import_module("thrifty.kernels.native._native")
    except ImportError as error:
        warnings.warn(f"{MISSING} ({error})", RuntimeWarning, stacklevel=2)
        return None
    asked = os.environ.get(THREADS)
    if asked is not None:
        _resize(module, int(asked) if asked.isdecimal() else 0, f"{THREADS} is {asked!r}")
    return module


def set_threads(threads: int) -> None:
    """Threads of the native pool (where there is one) and of torch. Raises KernelError with the numbers that work."""
    if threads < 1:
        raise KernelError(f"threads = {threads}; use 1 or more")
    module = native()
    if module is not None:
        _resize(module, threads, f"threads = {threads}")
    torch.set_num_threads(threads)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keeps torch to the calling thread: its workers go on spinning after their work, on the processors of the native
    pool.
    """
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def matmul(linear: Linear, x: Tensor) -> Tensor:
    """x fp32 [m, in] · Wᵀ → fp32 [m, out] without the bias, activations as int8 per 32 columns (bf16 for bf16 weights).

    A row's result is the same bits whatever m is. Raises KernelError for a wrong shape, type or layout.
    """
    module = require()
    if x.dim() != 2 or x.shape[1] != linear.in_features:
        raise KernelError(f"x has shape {tuple(x.shape)}, expected [rows, {linear.in_features}]")
    x = check(x, "x", torch.float32, tuple(x.shape), copy=True)
    y = torch.empty(x.shape[0], linear.out_features)
    kind, codes, scales, minimums, group = packed(linear)
    sizes = (linear.out_features, linear.in_features, group)
    if len(x):
        module.matmul(kind, codes, scales, minimums, *sizes, x.data_ptr(), y.data_ptr(), len(x))
    return y


def packed(linear: Any) -> tuple[int, int, int, int, int]:
    """Kind (4, 8 or 16), the addresses of codes, scales and minimums (0: absent), and the group of a packed linear.

    The caller keeps the linear alive. Raises KernelError where its tensors do not fit its sizes, or where the kernels
    do not know its format.
    """
    rows, columns = linear.out_features, linear.in_features
    tiles = -(-rows // 16)
    if getattr(linear, "packed", False):
        weight = check(linear.weight, "weight", torch.bfloat16, (tiles, -(-columns // 2), 16, 2))
        return 16, weight.data_ptr(), 0, 0, 0
    bits, group = getattr(linear, "bits", None), getattr(linear, "group", None)
    if bits not in (4, 8) or group not in (32, 64, 128):
        raise KernelError(f"no native kernel for {type(linear).__name__} {getattr(linear, 'label', '')}".rstrip())
    codes = check(linear.codes, "codes", torch.uint8, (tiles, -(-columns // 32), 64 * bits))
    shape = (tiles, -(-columns // group), 16)
    scales = check(linear.scales, "scales", torch.float16, shape)
    minimums = 0
    if linear.minimums is not None:
        minimums = check(linear.minimums, "minimums", torch.float16, shape).data_ptr()
    return bits, codes.data_ptr(), scales.data_ptr(), minimums, group


def attend(
    view: Any,
    layer: int,
    query: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float = 0.0,
    accumulate: Tensor | None = None,
) -> Tensor:
    """query fp32 [rows, heads, head_dim], the last rows of `view` (a native View), over its slots → fp32, same shape.

    Row i of n sees all slots of its KV head but the last n − 1 − i, of these the last `window` (None: all).
    `accumulate` fp32 [heads, slots], changed in place: each slot's probabilities are added, row after row; slots is
    the largest count of any KV head. Raises KernelError for wrong shapes and where a row would see no slot.
    """
    module = require()
    shape = tuple(query.shape)
    if len(shape) != 3 or shape[2] != view.head_dim:
        raise KernelError(f"query has shape {shape}, expected [rows, heads, {view.head_dim}]")
    if window is not None and window < 1:
        raise KernelError(f"attention window {window} must be at least 1 (None for no window)")
    query = check(query, "query", torch.float32, shape, copy=True)
    slots = max(view.tokens(layer, head) for head in range(view.kv_heads))
    target = 0
    if accumulate is not None:
        target = check(accumulate, "accumulate", torch.float32, (shape[1], slots)).data_ptr()
    out = torch.empty_like(query)
    try:
        addresses = (out.data_ptr(), target)
        module.attend(view, layer, query.data_ptr(), shape[0], shape[1], scale, window or 0, softcap, *addresses)
    except ValueError as error:
        raise KernelError(str(error)) from error
    return out


def witness(
    view: Any,
    layer: int,
    query: Tensor,
    judged: Sequence[tuple[int, int, int]],
    *,
    forced: int,
    scale: float,
    softcap: float = 0.0,
    mean: bool = False,
) -> Tensor:
    """The greatest softmax probability that a row of query fp32 [rows, heads, head_dim], the last rows of `view`, gives
    each judged slot: fp32 [kv_heads, most judged slots], 0 behind a head's last.

    judged: by KV head (sinks, low, high): rows see the slots 0..sinks−1, low..high−1, which are judged, and of the
    newest `forced` those up to their own. A KV head's query heads are reduced by their greatest, or their mean. Native
    code holds the scores of at most 64 rows of one KV head meanwhile, fp32. Raises KernelError for wrong shapes and
    slots.
    """
    module = require()
    shape = tuple(query.shape)
    if len(shape) != 3 or shape[2] != view.head_dim:
        raise KernelError(f"query has shape {shape}, expected [rows, heads, {view.head_dim}]")
    query = check(query, "query", torch.float32, shape, copy=True)
    table = torch.zeros(view.kv_heads, max(1, *(high - low for _, low, high in judged)))
    try:
        sizes = (shape[0], shape[1], forced, scale, softcap, mean)
        module.witness(view, layer, query.data_ptr(), *sizes, list(judged), table.data_ptr(), table.shape[1])
    except ValueError as error:
        raise KernelError(str(error)) from error
    return table


def append(view: Any, layer: int, keys: Tensor, values: Tensor) -> None:
    """Write keys and values fp32 [rows, kv_heads, head_dim] behind the last slots of `view`, into its open spans.

    Raises KernelError for wrong shapes and where the open spans have no room.
    """
    shape = (len(keys), view.kv_heads, view.head_dim)
    keys = check(keys, "keys", torch.float32, shape, copy=True)
    values = check(values, "values", torch.float32, shape, copy=True)
    try:
        if len(keys):
            view.append(layer, keys.data_ptr(), values.data_ptr(), len(keys))
    except ValueError as error:
        raise KernelError(str(error)) from error


def compress(
    source: Tensor, source_format: int, source_capacity: int, target: Tensor, target_format: int, target_capacity: int,
    head_dim: int, first_page: int, tokens: int,
) -> bool:  # fmt: skip
    """Slabs of full precision → slabs of codes, as `kv_batch.quantise`; formats by their ids (formats/kv.py).

    source, target: uint8 [count, slab bytes], rows 64-byte aligned and contiguous. False, with `target` partly written,
    where native code is off, does not take these slabs, or finds numbers that codes cannot hold.
    """
    module = native()
    slabs = (source, target)
    if module is None or any(one.stride(1) != 1 or one.stride(0) % 64 for one in slabs):
        return False
    if any(one.data_ptr() % 64 for one in slabs) or not tokens or not len(source):
        return False
    one = (source.data_ptr(), source.stride(0), source_format, source_capacity)
    other = (target.data_ptr(), target.stride(0), target_format, target_capacity)
    return bool(module.compress(*one, *other, len(source), head_dim, first_page, tokens))


Chosen = tuple[Tensor, int, Tensor]
"""Some slots of one head: a slab uint8 [slab bytes], its capacity, and the slots int64 [n]."""


def gather(heads: Sequence[tuple[Tensor, int, Sequence[Chosen]]], format: int, head_dim: int) -> bool:
    """Chosen slots of full-precision slabs → the front of other slabs of the same format (ids: formats/kv.py).

    heads: (target uint8 [slab bytes], its capacity, what it is made of). False, with nothing written, where native code
    is off or does not take these slabs.
    """
    module = native()
    if module is None:
        return False
    slabs = [slab for target, _, parts in heads for slab in (target, *(source for source, _, _ in parts))]
    if any(slab.data_ptr() % 64 or slab.stride(0) != 1 for slab in slabs):
        return False
    rows = []
    kept = []  # until native code has read them
    for target, capacity, parts in heads:
        kept.append([slots.contiguous() for _, _, slots in parts])
        chosen = [
            (source.data_ptr(), size, slots.data_ptr(), len(slots))
            for (source, size, _), slots in zip(parts, kept[-1], strict=True)
        ]
        rows.append((target.data_ptr(), capacity, chosen))
    module.gather(rows, format, head_dim)
    return True


def check(tensor: Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...], copy: bool = False) -> Tensor:
    """The tensor, detached, where type, shape, device and layout are right; `copy` mends type and layout instead.

    Raises KernelError naming what is wrong.
    """
    if copy:
        tensor = tensor.to(dtype).contiguous()
    if tensor.device.type != "cpu":
        raise KernelError(f"{name} is on {tensor.device}; the native kernels take CPU tensors")
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise KernelError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}")
    if not tensor.is_contiguous():
        raise KernelError(f"{name} must be contiguous")
    return tensor.detach()
