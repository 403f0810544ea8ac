"""What a step of a native plan may do beyond plain rows: data of the call, never compiled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from thrifty.errors import KernelError
from thrifty.kernels import dispatch

AdapterEntry = tuple[int, int, int, int, int, float]  # adapter, linear, addresses of down and up, rank, scale


@dataclass(frozen=True)
class Adapter:
    """A low-rank addition to chosen linears, y += scale · up (down x) (LoRA, arXiv 2106.09685, §4.1).

    weights: name of a linear → (down fp32 [rank, in], up fp32 [out, rank]); experts, routers, embedding and head take
    none.
    """

    weights: Mapping[str, tuple[Tensor, Tensor]]
    scale: float = 1.0


class StepOptions(TypedDict, total=False):
    """Options of one call; n rows, one after the other by sequence.

    lengths: tokens of each whole sequence (see `rope.rotation`), needed where a rope depends on it.
    skip: layers that pass the hidden state through. tap (l, fp32 [n, hidden]): filled with the state after layer l.
    tree int64 [n]: uncommitted rows as a tree; bit j of a row: it sees row j of its own sequence's rows in this step,
    itself included and later ones never; older slots it sees all. At most 64 rows a sequence, no more than a window.
    ahead int32 [n]: how many rows of its own sequence behind it a row sees as well (tokens of one image see each other;
    a window still begins at the row itself).
    adapters and adapter_rows [n]: the number of each row's adapter, or −1.
    arrivals: `kernels.native` Arrivals that another thread sets layer by layer; each layer waits for its flag, at most
    `patience` seconds (60).
    accumulate: nothing, or one cache.sums.Accumulator (or None) a view, to which attention adds its probabilities.
    """

    lengths: Sequence[int]
    skip: Sequence[int]
    tap: tuple[int, Tensor]
    tree: Tensor
    ahead: Tensor
    adapters: Sequence[Adapter]
    adapter_rows: Sequence[int]
    arrivals: Any
    patience: float
    accumulate: Sequence[Any]


def sight(options: StepOptions, rows: int) -> tuple[Tensor | None, Tensor | None]:
    """The checked `tree` and `ahead`."""
    tree, ahead = options.get("tree"), options.get("ahead")
    if tree is not None:
        tree = dispatch.check(tree, "tree", torch.int64, (rows,))
    if ahead is not None:
        ahead = dispatch.check(ahead, "ahead", torch.int32, (rows,))
    return tree, ahead


def adapter_entries(
    adapters: Sequence[Adapter], numbers: Mapping[str, int], shapes: Mapping[str, tuple[int, int]]
) -> list[AdapterEntry]:
    """The native table of `adapters`. numbers, shapes: number in the plan and [out, in] of each linear that takes one.

    Raises KernelError for a linear that takes none and for matrices of other shapes or types.
    """
    entries = []
    for index, adapter in enumerate(adapters):
        for name, (down, up) in adapter.weights.items():
            if name not in numbers:
                raise KernelError(f"{name!r} takes no adapter; linears of attention and of dense MLPs do")
            out_features, in_features = shapes[name]
            rank = len(down)
            dispatch.check(down, f"down of {name}", torch.float32, (rank, in_features))
            dispatch.check(up, f"up of {name}", torch.float32, (out_features, rank))
            entries.append((index, numbers[name], down.data_ptr(), up.data_ptr(), rank, adapter.scale))
    return entries
