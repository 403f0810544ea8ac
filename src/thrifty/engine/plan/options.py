"""What a step of a native plan may do beyond plain rows: data of the call, never compiled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from thrifty.arrays import Array, Floats
from thrifty.errors import KernelError
from thrifty.kernels import dispatch

if TYPE_CHECKING:
    from thrifty.cache.watching.sums import Accumulator
    from thrifty.engine.plan.build import PlanBuilder

AdapterEntry = tuple[int, int, Floats, Floats, float]  # adapter, linear, down, up, scale
PATIENCE = 60.0  # seconds that a layer waits for what has to arrive


@dataclass(frozen=True)
class Adapter:
    """A low-rank addition to chosen linears, y += scale · up (down x) (LoRA, arXiv 2106.09685, §4.1).

    weights: name of a linear → (down fp32 [rank, in], up fp32 [out, rank]); experts, routers, embedding and head take
    none.
    """

    weights: Mapping[str, tuple[Floats, Floats]]
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
    tap: tuple[int, Floats]
    tree: Array
    ahead: Array
    adapters: Sequence[Adapter]
    adapter_rows: Sequence[int]
    arrivals: Any
    patience: float
    accumulate: Sequence[Accumulator | None]


def set_options(step: Any, options: StepOptions, built: PlanBuilder) -> None:
    """Put the options of a call into a native Step. Raises KernelError for adapters that do not fit the plan."""
    if not options:
        return
    if "tap" in options:
        step.tap_layer, step.tap = options["tap"]
    step.skip = list(options.get("skip", ()))
    step.tree, step.ahead = options.get("tree"), options.get("ahead")
    step.adapters = adapter_entries(options.get("adapters", ()), built.numbers, built.shapes)
    step.adapter_rows = list(options.get("adapter_rows", ()))
    step.arrivals, step.patience = options.get("arrivals"), options.get("patience", PATIENCE)
    step.sums = native_sums(options.get("accumulate", ()))


def native_sums(accumulate: Sequence[Accumulator | None]) -> list[tuple[list[int], Floats] | None]:
    """Where each sequence's attention adds its probabilities, as native code takes it."""
    return [None if one is None else (list(one.layers), one.sums) for one in accumulate]


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
            dispatch.check(down, f"down of {name}", np.float32, (rank, in_features))
            dispatch.check(up, f"up of {name}", np.float32, (out_features, rank))
            entries.append((index, numbers[name], down, up, adapter.scale))
    return entries
