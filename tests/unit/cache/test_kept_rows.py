"""Uncommitted rows that are chosen: a cache is then as if only these had come."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.cache.cache_driver import model_info

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.errors import PromptError
from thrifty.formats import kv

LAYERS, HEADS, KV_HEADS, DIM = 3, 4, 2, 16
WINDOWS = (None, 40, None)


@cache
def row(number: int, heads: int = KV_HEADS, what: int = 0) -> Floats:
    """[1, heads, DIM] of a token's own."""
    return np.random.default_rng((number, what)).normal(size=(1, heads, DIM)).astype(np.float32)


def append(sequence: SequenceCache, number: int, path: tuple[int, ...] | None = None) -> list[Floats]:
    """One row in every layer; what attention gives for it."""
    out = []
    for layer in range(LAYERS):
        sequence.append(layer, row(number, what=2 * layer), row(number, what=2 * layer + 1))
        out.append(sequence.attend(layer, row(number, HEADS, 50 + layer), path=path))
    return out


def filled(pool: Cache, tokens: int) -> SequenceCache:
    """A sequence of `tokens` committed tokens."""
    sequence = pool.create(())
    sequence.reserve(tokens)
    for layer in range(LAYERS):
        keys, values = rows(tokens, 2 * layer), rows(tokens, 2 * layer + 1)
        sequence.append(layer, keys, values)
    sequence.commit(tokens)
    return sequence


def rows(count: int, what: int, heads: int = KV_HEADS) -> Floats:
    """[count, heads, DIM] of the first tokens."""
    return np.concatenate([row(number, heads, what) for number in range(count)])


def contents(sequence: SequenceCache) -> list[Floats]:
    """Keys and values of all slots by layer and head."""
    arrays = []
    for layer in range(LAYERS):
        for head in range(KV_HEADS):
            for span in sequence.spans[layer]:
                slab = span.segment.slab(span.layer(layer), head)
                arrays += [*kv.read(span.segment.format, slab, span.segment.capacity, DIM, 0, span.tokens)]
            for page, tokens in sequence.open_rows.pages(layer):
                if tokens:
                    arrays += [*kv.read(page.format, page.slab(layer, head), page.capacity, DIM, 0, tokens)]
    return arrays


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Parents of some rows, and a path from what is committed into them."""
    parents = [draw(st.integers(-1, place - 1)) for place in range(draw(st.integers(1, 30)))]
    at, path = draw(st.integers(0, len(parents) - 1)), []
    while at >= 0:
        path.append(at)
        at = parents[at]
    return parents, path[::-1]


def path_to(parents: list[int], at: int) -> tuple[int, ...]:
    return () if at < 0 else (*path_to(parents, parents[at]), at)


@settings(max_examples=25, deadline=None)
@given(trees(), st.integers(1, 140), st.sampled_from(["f32", "bf16"]))
def test_a_kept_path_is_a_line_that_was_appended(tree: tuple[list[int], list[int]], held: int, format: str) -> None:
    """Contents to the bit; attention of the rows as of that line; a later row sees the same slots."""
    parents, path = tree
    pool = Cache(
        model_info(layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM, windows=WINDOWS, format=format)
    )
    chosen, line = filled(pool, held), filled(pool, held)
    chosen.reserve(len(parents))
    seen = [append(chosen, 1000 + at, path_to(parents, at)) for at in range(len(parents))]
    chosen.keep(path)
    line.reserve(len(path))
    expected = [append(line, 1000 + at) for at in path]
    for mine, theirs in zip([seen[at] for at in path], expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert [chosen.slots(layer) for layer in range(LAYERS)] == [line.slots(layer) for layer in range(LAYERS)]
    for sequence in (chosen, line):
        sequence.commit(len(path))
    assert chosen.length == line.length == held + len(path)
    held_by = contents(chosen), contents(line)
    assert len(held_by[0]) == len(held_by[1]) and all(map(np.array_equal, *held_by))
    for sequence in (chosen, line):
        sequence.reserve(1)
    assert all(map(np.array_equal, append(chosen, 7000), append(line, 7000)))


def test_no_row_may_be_kept_at_all() -> None:
    pool = Cache(model_info(layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM, windows=WINDOWS))
    sequence, other = filled(pool, 70), filled(pool, 70)
    sequence.reserve(3)
    for number in range(3):
        append(sequence, number)
    sequence.keep([])
    assert [sequence.slots(layer) for layer in range(LAYERS)] == [other.slots(layer) for layer in range(LAYERS)]
    assert all(map(np.array_equal, contents(sequence), contents(other)))


@pytest.mark.parametrize("rows", [[1, 0], [0, 0], [3], [-1, 0]])
def test_rows_that_are_not_there_are_refused(rows: list[int]) -> None:
    pool = Cache(model_info(layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM, windows=WINDOWS))
    sequence = filled(pool, 20)
    sequence.reserve(3)
    for number in range(3):
        append(sequence, number)
    before = contents(sequence)
    with pytest.raises(PromptError, match="of the 3 uncommitted rows"):
        sequence.keep(rows)
    assert all(map(np.array_equal, contents(sequence), before))


def test_rows_of_a_prompt_that_goes_by_layers_are_not_chosen() -> None:
    pool = Cache(model_info(layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM))
    sequence = pool.create((registry.build("cache", {"technique": "snapkv", "keep": 0.5}),))
    sequence.begin_layer(0, 10)
    for number in range(10):
        sequence.append(0, row(number), row(number))
    with pytest.raises(PromptError, match="layer by layer"):
        sequence.keep([0, 2])


def test_one_path_is_of_one_row() -> None:
    pool = Cache(model_info(layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM))
    sequence = filled(pool, 10)
    sequence.reserve(2)
    sequence.append(0, np.concatenate([row(1), row(2)]), np.concatenate([row(1), row(2)]))
    with pytest.raises(PromptError, match="rows of a tree are attended to one by one"):
        sequence.attend(0, np.concatenate([row(1, HEADS), row(2, HEADS)]), path=(0, 1))


@settings(max_examples=20, deadline=None)
@given(trees(), st.integers(64, 140))
def test_column_sums_are_those_of_the_line(tree: tuple[list[int], list[int]], held: int) -> None:
    """What a policy will read of kept rows: their probabilities, at the places where their slots lie now."""
    parents, path = tree
    policies = (registry.build("cache", {"technique": "h2o", "capacity": 400}),)
    pool = Cache(model_info(layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM))
    chosen, line = filled_layers(pool, held, policies), filled_layers(pool, held, policies)
    chosen.reserve(len(parents))
    for at in range(len(parents)):
        append(chosen, 1000 + at, path_to(parents, at))
    chosen.keep(path)
    line.reserve(len(path))
    for at in path:
        append(line, 1000 + at)
    for sequence in (chosen, line):
        sequence.commit(len(path))
    for layer in range(LAYERS):
        mine, theirs = chosen.stats(layer).column_sums, line.stats(layer).column_sums
        assert mine is not None and theirs is not None
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def filled_layers(pool: Cache, tokens: int, policies: tuple[Any, ...]) -> SequenceCache:
    """As `filled`, for a prompt that is compressed layer by layer."""
    sequence = pool.create(policies)
    for layer in range(LAYERS):
        sequence.begin_layer(layer, tokens)
        sequence.append(layer, rows(tokens, 2 * layer), rows(tokens, 2 * layer + 1))
        sequence.attend(layer, rows(tokens, 50 + layer, HEADS))
        sequence.seal_layer(layer)
    sequence.commit(tokens)
    return sequence
