"""What a step of a native plan may do beyond plain rows: data of the call, never compiled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from thrifty.arrays import Array, Floats

if TYPE_CHECKING:
    from thrifty.cache.watching.sums import Accumulator
    from thrifty.engine.plan.adapter_tables import AdapterTables
    from thrifty.models.adapters import Adapter

PATIENCE = 60.0  # seconds that a layer waits for what has to arrive


class StepOptions(TypedDict, total=False):
    """Options of one call; n rows, one after the other by sequence.

    lengths: tokens of each whole sequence (see `rope.rotation`), needed where a rope depends on it.
    skip: layers that pass the hidden state through. taps: layer → fp32 [t, hidden], filled with the state after it.
    tap_rows int32 [t]: the rows that taps are of; all n where it is left out.
    residual: layer → fp32 [hidden] (or None) for each sequence, added to the state after the layer, before taps.
    tree int64 [n]: uncommitted rows as a tree; bit j of a row: it sees row j of its own sequence's rows in this step,
    itself included and later ones never; older slots it sees all. At most 64 rows a sequence, no more than a window.
    ahead int32 [n]: how many rows of its own sequence behind it a row sees as well (tokens of one image see each other;
    a window still begins at the row itself).
    adapters and adapter_rows [n]: the number of each row's adapter, or −1.
    arrivals: `kernels.native` Arrivals that another thread sets layer by layer; each layer waits for its flag, at most
    `patience` seconds (60).
    decodes: whether the rows are of answers, which select pages where their caches say so.
    accumulate: nothing, or one cache.sums.Accumulator (or None) a view, to which attention adds its probabilities.
    """

    lengths: Sequence[int]
    skip: Sequence[int]
    taps: Mapping[int, Floats]
    tap_rows: Array
    residual: Mapping[int, Sequence[Floats | None]]
    tree: Array
    ahead: Array
    adapters: Sequence[Adapter]
    adapter_rows: Sequence[int]
    arrivals: Any
    patience: float
    decodes: bool
    accumulate: Sequence[Accumulator | None]


def set_options(step: Any, options: StepOptions, tables: AdapterTables) -> None:
    """Put the options of a call into a native Step. Raises KernelError for adapters that do not fit the plan."""
    if not options:
        return
    step.taps, step.tap_rows = list(options.get("taps", {}).items()), options.get("tap_rows")
    step.residual = [(layer, list(vectors)) for layer, vectors in options.get("residual", {}).items()]
    step.skip = list(options.get("skip", ()))
    step.tree, step.ahead = options.get("tree"), options.get("ahead")
    step.adapters = [tables.of(adapter) for adapter in options.get("adapters", ())]
    step.adapter_rows = list(options.get("adapter_rows", ()))
    step.arrivals, step.patience = options.get("arrivals"), options.get("patience", PATIENCE)
    step.sums = native_sums(options.get("accumulate", ()))
    step.decodes = options.get("decodes", False)


def native_sums(accumulate: Sequence[Accumulator | None]) -> list[tuple[list[int], Floats] | None]:
    """Where each sequence's attention adds its probabilities, as native code takes it."""
    return [None if sums is None else (list(sums.layers), sums.sums) for sums in accumulate]
