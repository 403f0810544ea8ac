"""Pages of keys that a query selects among, by the most that it can score in each: the oracle of the native selection.

Source: Quest (arXiv:2406.10774, algorithm 1).
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Flags, Floats, Integers

_UPPER = np.uint32(0xFFFF0000)


def page_bounds(keys: Floats) -> tuple[Floats, Floats]:
    """keys fp32 [slots, head_dim] of a page → greatest, least fp32 [head_dim] of every channel, each the nearest bf16
    that is not below, or not above: exact for keys that are bf16.
    """
    return _outward(keys.max(axis=0), up=True), _outward(keys.min(axis=0), up=False)


def page_score(query: Floats, greatest: Floats, least: Floats) -> float:
    """Σ over channels of max(q · least, q · greatest): no key of the page gives the query fp32 [head_dim] more."""
    return float(np.maximum(query * least, query * greatest).sum(dtype=np.float32))


def highest(scores: Floats, count: int) -> Integers:
    """int64: the `count` highest of the scores fp32 [pages], rising; of equal ones the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def seen_slots(
    query: Floats, keys: Floats, hidden: Flags, blocks: npt.ArrayLike, own: int, page: int, budget: int
) -> Flags:
    """bool [slots]: what one query row fp32 [head_dim] attends to among keys fp32 [slots, head_dim].

    blocks: the first slot of every block, rising; pages are the parts of `page` slots of a block, from its start. own:
    a slot whose page is the row's own: that page and all behind it are seen, whatever they score. Of the pages before,
    those of the highest scores are, `budget` with the row's own; hidden (bool [slots]) slots count nowhere.
    """
    starts = _page_starts(np.asarray(blocks, np.int64), len(keys), page)
    place = int(starts.searchsorted(own, side="right")) - 1
    seen = np.zeros(len(keys), np.bool_)
    seen[starts[place] :] = True
    ranges = [slice(start, stop) for start, stop in itertools.pairwise(starts[: place + 1].tolist())]
    live = [part for part in ranges if not hidden[part].all()]
    scores = [page_score(query, *page_bounds(keys[part][~hidden[part]])) for part in live]
    for chosen in highest(np.array(scores, np.float32), budget - 1):
        seen[live[chosen]] = True
    return seen


def _page_starts(blocks: Integers, slots: int, page: int) -> Integers:
    """int64: where pages start."""
    stops = [*blocks[1:].tolist(), slots]
    return np.concatenate([np.arange(start, stop, page) for start, stop in zip(blocks.tolist(), stops, strict=True)])


def _outward(x: Floats, *, up: bool) -> Floats:
    """The nearest bf16 that is not below x (up), or not above it."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    away = (bits & ~_UPPER != 0) & (x > 0 if up else x < 0)
    return ((bits & _UPPER) + away.astype(np.uint32) * np.uint32(1 << 16)).view(np.float32)
