"""The options of a native step for rows that are more than plain tokens: what `RowExtra` says, as a plan takes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.decoding.tree import depths, line, lineage
from thrifty.engine.plan.options import StepOptions
from thrifty.engine.row_extra import RowExtra, Whole
from thrifty.engine.runner import Rows

PLAIN = RowExtra()


def row_options(batch: Sequence[Rows], tap_rows: Whole, hidden: int) -> tuple[StepOptions, dict[int, Floats]]:
    """The options of a step of these sequences, and its taps by layer, fp32 [tap_rows, hidden], which it will fill.

    hidden: width of the hidden state.
    """
    extras, counts = [rows.extra or PLAIN for rows in batch], [len(rows.tokens) for rows in batch]
    options: StepOptions = {}
    adapters = list(dict.fromkeys(extra.adapter for extra in extras if extra.adapter is not None))
    if adapters:
        options["adapters"] = adapters
        numbers = [-1 if extra.adapter is None else adapters.index(extra.adapter) for extra in extras]
        options["adapter_rows"] = np.repeat(numbers, counts).tolist()
    layers = dict.fromkeys(layer for extra in extras for layer in extra.residual)
    if layers:
        options["residual"] = {layer: [extra.residual.get(layer) for extra in extras] for layer in layers}
    if any(extra.parents is not None for extra in extras):
        options["tree"] = np.concatenate([_lineage(extra, count) for extra, count in zip(extras, counts, strict=True)])
    if any(extra.ahead is not None for extra in extras):
        options["ahead"] = np.concatenate([_ahead(extra, count) for extra, count in zip(extras, counts, strict=True)])
    tapped = dict.fromkeys(layer for extra in extras for layer in extra.taps)
    taps = {layer: np.empty((len(tap_rows), hidden), np.float32) for layer in tapped} if len(tap_rows) else {}
    if taps:
        options["taps"], options["tap_rows"] = taps, tap_rows
    return options, taps


def positions(batch: Sequence[Rows]) -> Whole:
    """int32 [rows] of all sequences, or [3, rows] where one of them has three a row."""
    own = [_positions(rows) for rows in batch]
    if any(part.ndim == 2 for part in own):
        own = [part if part.ndim == 2 else np.broadcast_to(part, (3, len(part))) for part in own]
    return np.ascontiguousarray(np.concatenate(own, axis=-1), np.int32)


def _positions(rows: Rows) -> Whole:
    extra = rows.extra
    if extra is not None and extra.positions is not None:
        return extra.positions
    if extra is not None and extra.parents is not None:
        return np.array(depths(extra.parents), np.int32) + np.int32(rows.start)
    return np.arange(rows.start, rows.start + len(rows.tokens), dtype=np.int32)


def _lineage(extra: RowExtra, count: int) -> Integers:
    return lineage(line(count) if extra.parents is None else extra.parents)


def _ahead(extra: RowExtra, count: int) -> Whole:
    return np.zeros(count, np.int32) if extra.ahead is None else extra.ahead
