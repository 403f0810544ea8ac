"""Attention of the reference path over a sequence's slots, and the statistics that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Array, Floats
from thrifty.cache.slots.reading import Source, attended, on_path, reachable, up_to, with_pages
from thrifty.cache.watching.collector import ROWS_AT_ONCE, Collector
from thrifty.errors import PromptError
from thrifty.kernels.reference import attention

if TYPE_CHECKING:
    from thrifty.cache.page_selection import PageSelection
    from thrifty.cache.slots.sequence_slots import SequenceSlots


def attend(
    slots: SequenceSlots,
    collector: Collector,
    layer: int,
    query: Floats,
    *,
    scale: float,
    softcap: float,
    window: int | None,
    ahead: Array | None = None,
    path: Sequence[int] | None = None,
    selection: PageSelection | None = None,
) -> Floats:
    """query [n, heads, head_dim] fp32 of the newest n rows → [n, heads, head_dim] fp32. path: see `SequenceCache`.
    selection: what the rows attend to in some layers; None: everything.

    Column sums of rows that may still be rejected are kept row by row where they are few, else as one block.
    """
    rows, widths, selected = len(query), slots.model.of(layer), slots.spans.selected
    if path is not None and rows != 1:
        raise PromptError(f"{rows} query rows with one path: rows of a tree are attended to one by one")
    keep_sums = collector.sums_now and window is None
    prompt = slots.open_rows.scratch is not None
    apart = keep_sums and not prompt and rows <= ROWS_AT_ONCE
    newest = rows if path is None else slots.open_rows.pending[layer]
    reach = None if window is None else newest + window - 1
    out = np.empty((rows, widths.heads, widths.head_dim), np.float32)
    sums = []
    for head in range(widths.kv_heads):
        part = slice(head * widths.group, (head + 1) * widths.group)
        own = selected[layer][head] if layer in selected else None
        spans = attended(_sources(slots, layer, head, reach), head, own)
        if path is not None:
            spans = on_path(spans, path, newest, window)
        if selection is not None and layer in selection.layers:
            out[:, part] = _attend_to_pages(query[:, part], spans, selection, newest, scale, softcap)
            continue
        result = attention.attend(
            query[:, part],
            spans,
            scale=scale,
            window=window if path is None else None,
            softcap=softcap,
            column_sums=keep_sums and not apart,
            probabilities=apart,
            ahead=ahead,
        )
        out[:, part] = result.out
        if apart and result.probabilities is not None:
            collector.add_rows(layer, head, result.probabilities)
        elif result.column_sums is not None:
            sums.append(result.column_sums)
    if sums and prompt:
        collector.add_sums(layer, sums)
    elif sums:
        for head, added in enumerate(sums):
            collector.add_block(layer, head, added)
    collector.add_queries(layer, query)
    return out


def _attend_to_pages(
    query: Floats, spans: Sequence[attention.Span], selection: PageSelection, newest: int, scale: float, softcap: float
) -> Floats:
    """query fp32 [n, group, head_dim] of one KV head, each row and head over the pages that it selects → same shape.
    newest: how many of the slots are the step's own, from the first of which on everything is read.
    """
    out = np.empty_like(query)
    slots = sum(len(span.keys) for span in spans)
    for row, heads in enumerate(query):
        visible = up_to(spans, slots - (len(query) - 1 - row))
        for head, own in enumerate(heads):
            pages = with_pages(visible, own, slots - newest, selection)
            out[row, head] = attention.attend(own[None, None], pages, scale=scale, softcap=softcap).out[0, 0]
    return out


def _sources(slots: SequenceSlots, layer: int, head: int, reach: int | None) -> list[Source]:
    """What one head's newest rows may see, in order; of a windowed layer the newest `reach` slots."""
    spans = slots.spans[layer]
    sources = [Source(span.segment, span.layer(layer), span.tokens) for span in spans if span.holds(head)]
    sources += [Source(page, layer, tokens) for page, tokens in slots.open_rows.pages(layer) if tokens]
    return sources if reach is None else reachable(sources, reach)
