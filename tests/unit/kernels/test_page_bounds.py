"""Bounds of pages and what rows select by them: against the paper's equations written out, and native against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.unit.kernels.native_pages import ISAS, aligned, normal, using

from thrifty.arrays import BFLOAT16, Flags, Floats
from thrifty.formats import kv
from thrifty.kernels import dispatch
from thrifty.kernels.reference import attention
from thrifty.kernels.reference.page_bounds import highest, page_bounds, page_score, seen_slots

PAGE = 64


def slow_scores(query: Floats, keys: Floats, page: int) -> list[float]:
    """Algorithm 1: m and M of every page, then the sum of max(q·m, q·M), channel by channel."""
    scores = []
    for start in range(0, len(keys), page):
        total = 0.0
        for channel, q in enumerate(query):
            column = [float(row[channel]) for row in keys[start : start + page]]
            total += max(float(q) * min(column), float(q) * max(column))
        scores.append(total)
    return scores


def slow_seen(query: Floats, keys: Floats, page: int, budget: int) -> Flags:
    """The page of the newest slot, and of those before the best `budget` − 1, the first of equal ones."""
    own = (len(keys) - 1) // page * page
    scores = slow_scores(query, keys[:own], page)
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    seen = np.zeros(len(keys), np.bool_)
    seen[own:] = True
    for index in order[: budget - 1]:
        seen[index * page : (index + 1) * page] = True
    return seen


def rounded(x: Floats) -> Floats:
    """As a bf16 cache holds it."""
    return x.astype(BFLOAT16).astype(np.float32)


@pytest.mark.parametrize("page", [16, 32, 64])
def test_rows_see_the_pages_of_the_highest_bounds(page: int) -> None:
    keys, queries = rounded(normal(300, 24, seed=1)), normal(6, 24, seed=2)
    for query in queries:
        seen = seen_slots(query, keys, np.zeros(300, np.bool_), range(0, 300, PAGE), 299, page, 3)
        assert np.array_equal(seen, slow_seen(query, keys, page, 3))


def test_no_key_scores_more_than_its_pages_bound() -> None:
    """Also where keys are not bf16, so that bounds are rounded: away from them, to a neighbour."""
    keys, queries = normal(64, 48, seed=3), normal(20, 48, seed=4)
    greatest, least = page_bounds(keys)
    assert (greatest >= keys.max(axis=0)).all() and (least <= keys.min(axis=0)).all()
    assert np.allclose(greatest, keys.max(axis=0), rtol=2**-7) and np.allclose(least, keys.min(axis=0), rtol=2**-7)
    for query in queries:
        assert (keys @ query).max() <= page_score(query, greatest, least) + 1e-4
    exact = page_bounds(rounded(keys))
    assert np.array_equal(exact[0], rounded(keys).max(axis=0)) and np.array_equal(exact[1], rounded(keys).min(axis=0))


def test_of_equal_scores_the_first_are_taken() -> None:
    assert highest(np.array([1, 3, 3, 2, 3], np.float32), 2).tolist() == [1, 2]
    assert highest(np.array([1, 2], np.float32), 5).tolist() == [0, 1]


def test_blocks_that_are_not_full_begin_new_pages_and_hidden_slots_count_nowhere() -> None:
    keys = np.zeros((150, 16), np.float32)
    keys[2], keys[70], keys[100] = 9, 5, 7  # sinks in a block of 4 slots, then blocks from 4, 68 and 132
    hidden = np.zeros(150, np.bool_)
    seen = seen_slots(np.ones(16, np.float32), keys, hidden, [0, 4, 68, 132], 149, 32, 3)
    assert np.flatnonzero(seen).tolist() == [*range(4), *range(100, 150)], "pages 0..3, 100..131, and its own"
    hidden[100] = True
    seen = seen_slots(np.ones(16, np.float32), keys, hidden, [0, 4, 68, 132], 149, 32, 3)
    assert np.flatnonzero(seen).tolist() == [*range(4), *range(68, 100), *range(132, 150)]
    hidden[:4] = True
    seen = seen_slots(np.ones(16, np.float32), keys, hidden, [0, 4, 68, 132], 149, 32, 2)
    assert not seen[:4].any(), "a page of holes is never chosen"


class Cached:
    """A native view of one layer over pages of given keys and values, and the same as spans of the reference."""

    def __init__(self, keys: Floats, values: Floats, form: str, budget: int, page: int) -> None:
        """keys, values: [kv_heads, slots, dim]."""
        heads, slots, dim = keys.shape
        self.view = dispatch.require().View([heads], [dim])
        self.memory, self.spans = [], []
        for head in range(heads):
            spans = []
            for start in range(0, slots, PAGE):
                stop = min(start + PAGE, slots)
                slab = aligned(kv.slab_bytes(form, PAGE, dim))
                kv.write(form, slab, PAGE, dim, 0, keys[head, start:stop], values[head, start:stop])
                self.view.push(0, head, slab, stop - start, PAGE, kv.FORMATS.index(form), None, stop - start == PAGE)
                self.memory.append(slab)
                spans.append(attention.Span(*kv.read(form, slab, PAGE, dim, 0, stop - start)))
            self.spans.append(spans)
        self.view.select_pages(0, page, budget)
        self.view.hold_bounds(self.view.most_blocks)
        self.page, self.budget = page, budget

    def expected(self, query: Floats, rows: int) -> Floats:
        """The reference's attention of the newest `rows` rows over what each query head sees."""
        out = np.empty_like(query)
        for row in range(len(query)):
            for head in range(query.shape[1]):
                spans = self.spans[head * len(self.spans) // query.shape[1]]
                every = np.concatenate([span.keys for span in spans])
                slots = len(every) - (rows - 1 - row)
                hidden = np.zeros(slots, np.bool_)
                own, blocks = len(every) - rows, range(0, slots, PAGE)
                seen = seen_slots(query[row, head], every[:slots], hidden, blocks, own, self.page, self.budget)
                assert not seen.all(), "something is left out"
                logits = np.where(seen, every[:slots] @ query[row, head] * 0.3, -math.inf)
                weights = np.exp(logits - logits.max())
                values = np.concatenate([span.values for span in spans])[:slots]
                out[row, head] = weights @ values / weights.sum()
        return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("form", "page", "dim"), [("bf16", 64, 64), ("bf16", 16, 24), ("f32", 32, 80), ("int4", 64, 64)]
)
def test_native_rows_attend_to_the_pages_that_numpy_selects(isa: str, form: str, page: int, dim: int) -> None:
    """Alone, and several rows of a page together; two query heads share keys, and choose for themselves."""
    with using(isa):
        keys, values = normal(2, 64 * 9 + 37, dim, seed=5), normal(2, 64 * 9 + 37, dim, seed=6)
        cached = Cached(keys[:, : 64 * 9] if form == "int4" else keys, values, form, 3, page)
        query = rounded(normal(5, 4, dim, seed=7))
        for rows in (1, 5):
            out = dispatch.attend(cached.view, 0, query[-rows:], scale=0.3, decodes=True)
            assert np.allclose(out, cached.expected(query[-rows:], rows), atol=5e-2 if isa == "avx512" else 1e-4)
        full = dispatch.attend(cached.view, 0, query, scale=0.3)
        assert not np.allclose(full, dispatch.attend(cached.view, 0, query, scale=0.3, decodes=True), atol=1e-3)


@pytest.mark.parametrize("page", [16, 64])
def test_a_row_has_the_same_bits_alone_and_beside_other_rows(page: int) -> None:
    keys, values = normal(2, 700, 64, seed=8), normal(2, 700, 64, seed=9)
    cached, query = Cached(keys, values, "bf16", 4, page), normal(7, 6, 64, seed=10)
    alone = dispatch.attend(cached.view, 0, query[-1:], scale=0.1, decodes=True)
    assert np.array_equal(dispatch.attend(cached.view, 0, query, scale=0.1, decodes=True)[-1:], alone)


def test_a_budget_that_holds_all_pages_gives_the_bits_of_full_attention() -> None:
    keys, values, query = normal(1, 500, 64, seed=11), normal(1, 500, 64, seed=12), normal(1, 3, 64, seed=13)
    cached = Cached(keys, values, "bf16", 8, 64)
    full = dispatch.attend(cached.view, 0, query, scale=0.1)
    assert np.array_equal(dispatch.attend(cached.view, 0, query, scale=0.1, decodes=True), full)


def test_bounds_follow_truncated_and_exchanged_slots() -> None:
    """What was known of a page is forgotten where its slots go, or become others."""
    keys, values, query = normal(1, 640, 64, seed=14), normal(1, 640, 64, seed=15), normal(1, 2, 64, seed=16)
    cached = Cached(keys, values, "bf16", 3, 64)
    dispatch.attend(cached.view, 0, query, scale=0.3, decodes=True)
    other = normal(1, 640, 64, seed=17)
    again = Cached(np.concatenate((keys[:, :448], other[:, 448:]), axis=1), values, "bf16", 3, 64)
    cached.view.truncate(0, 192)
    for slab in again.memory[7:]:
        cached.view.push(0, 0, slab, PAGE, PAGE, kv.FORMATS.index("bf16"), None, True)
    expected = dispatch.attend(again.view, 0, query, scale=0.3, decodes=True)
    assert np.array_equal(dispatch.attend(cached.view, 0, query, scale=0.3, decodes=True), expected)
    new = Cached(other, values, "bf16", 3, 64)
    for index, slab in enumerate(new.memory):
        cached.view.exchange(0, 0, index, slab, PAGE, kv.FORMATS.index("bf16"))
    expected = dispatch.attend(new.view, 0, query, scale=0.3, decodes=True)
    assert np.array_equal(dispatch.attend(cached.view, 0, query, scale=0.3, decodes=True), expected)


def test_a_view_without_room_for_bounds_is_refused() -> None:
    cached = Cached(normal(1, 640, 64), normal(1, 640, 64), "bf16", 3, 64)
    cached.view.select_pages(0, 64, 3)
    with pytest.raises(Exception, match=r"bounds of 0 pages, not of 9; call hold_bounds first"):
        dispatch.attend(cached.view, 0, normal(1, 1, 64), scale=0.3, decodes=True)
    with pytest.raises(ValueError, match="16, 32 or 64 slots, not 48"):
        cached.view.select_pages(0, 48, 3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("form", "page", "slots"), [("bf16", 16, 53), ("bf16", 32, 37), ("f32", 16, 17)])
def test_bounds_heed_no_memory_behind_the_last_slot(isa: str, form: str, page: int, slots: int) -> None:
    """A page that begins lies in memory of others before: what is no number there hides no page beside it."""
    with using(isa):
        query = rounded(normal(1, 2, 64, seed=18))
        keys, values = normal(1, 384 + slots, 64, seed=19), normal(1, 384 + slots, 64, seed=20)
        keys[0, 384 : 384 + page] = 3 * query[0, 0]
        cached = Cached(rounded(keys), values, form, 3, page)
        clean = dispatch.attend(cached.view, 0, query, scale=0.3, decodes=True)
        dirty = Cached(rounded(keys), values, form, 3, page)
        number = np.dtype(np.uint16 if form == "bf16" else np.uint32)
        held = dirty.memory[-1][: 64 * 64 * number.itemsize].view(number).reshape(64, 64)
        held[:, slots:] = 0x7FC0 << 8 * (number.itemsize - 2)  # no number
        assert np.allclose(clean[0, 0], cached.expected(query, 1)[0, 0], atol=5e-2)
        assert np.array_equal(dispatch.attend(dirty.view, 0, query, scale=0.3, decodes=True), clean)
