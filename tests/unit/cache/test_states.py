"""Recurrent states of a sequence: what a commit keeps, snapshots in the prefix tree, tiers, and the books."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.unit.cache.cache_driver import Driver, model_info, prompt

from thrifty.arrays import Floats
from thrifty.cache.footprint import state_bytes
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.cache.slots.states import RecurrentStates
from thrifty.errors import BudgetError, PromptError
from thrifty.formats.kv import PAGE
from thrifty.kernels import dispatch

STATES = (100, 0, 60)


@pytest.fixture
def model() -> ModelInfo:
    """Recurrent, attention, recurrent."""
    return dataclasses.replace(model_info(layers=3), states=STATES)


class Hybrid(Driver):
    """States that depend on all tokens so far: s ← s / 2 + token + layer."""

    def step(self, cache: SequenceCache, tokens: Any, commit: int | None = None) -> list[Floats]:
        start = cache.length
        cache.reserve(len(tokens))
        self._append(cache, 1, tokens, start)
        for layer in self.model.state_layers:
            self.recur(cache, layer, tokens)
        cache.commit(len(tokens))
        return []

    def recur(self, cache: SequenceCache, layer: int, tokens: Any) -> None:
        state = cache.state(layer).copy()
        for token in tokens:
            state = (state / 2 + np.arange(len(state)) + float(token) + layer).astype(np.float32)
        cache.set_state(layer, state, len(tokens))

    def expected(self, layer: int, tokens: Any) -> Floats:
        state = np.zeros(STATES[layer], np.float32)
        for token in tokens:
            state = (state / 2 + np.arange(len(state)) + float(token) + layer).astype(np.float32)
        return state

    def check(self, cache: SequenceCache, tokens: Any) -> None:
        for layer in self.model.state_layers:
            assert np.array_equal(cache.state(layer), self.expected(layer, tokens))


def states_of(cache: SequenceCache) -> RecurrentStates:
    assert cache.states is not None
    return cache.states


def test_layers_say_what_they_keep(model: ModelInfo) -> None:
    assert model.attention_layers == model.policy_layers == (1,)
    assert model.state_layers == (0, 2)
    assert [group.layers for group in model.layer_groups()] == [(1,)]
    mixed = dataclasses.replace(model_info(layers=4, windows=(None, None, 70, 70)), states=(8, 0, 0, 8))
    assert mixed.policy_layers == (1,) and mixed.attention_layers == (1, 2)
    assert [(group.window, group.layers) for group in mixed.layer_groups()] == [(None, (1,)), (70, (2,))]
    with pytest.raises(ValueError, match="2 states for 3 layers"):
        dataclasses.replace(model, states=(1, 0))


def test_rows_count_when_they_are_committed(model: ModelInfo) -> None:
    driver, cache = Hybrid(model), Cache(model)
    sequence = cache.create()
    tokens = prompt(30)
    driver.step(sequence, tokens[:20])
    driver.step(sequence, tokens[20:21])
    driver.check(sequence, tokens[:21])
    driver.recur(sequence, 0, [7, 8])
    sequence.discard()
    driver.check(sequence, tokens[:21])
    sequence.reserve(2)
    driver._append(sequence, 1, [3, 4], sequence.length)
    driver.recur(sequence, 0, [3, 4])
    with pytest.raises(PromptError, match="the state of layer 2 has seen 0 rows"):
        sequence.commit(2)
    driver.recur(sequence, 2, [3, 4])
    with pytest.raises(PromptError, match="recurrent layers cannot drop 1 rows of 2"):
        sequence.truncate(1)
    with pytest.raises(PromptError, match="recurrent layers cannot drop 9 rows of 2"):
        sequence.truncate(9)
    sequence.truncate(2)
    driver.check(sequence, tokens[:21])
    driver.step(sequence, tokens[21:])
    driver.check(sequence, tokens)


def test_a_fork_has_states_of_its_own(model: ModelInfo) -> None:
    driver, cache = Hybrid(model), Cache(model)
    parent = cache.create()
    driver.step(parent, prompt(10))
    child = parent.fork()
    driver.step(child, [5])
    driver.step(parent, [6])
    driver.check(child, [*prompt(10), 5])
    driver.check(parent, [*prompt(10), 6])
    before = cache.ledger.bytes_of("cache")
    held = states_of(child).nbytes
    assert held >= 2 * 4 * sum(STATES)
    child.free()
    assert before - cache.ledger.bytes_of("cache") >= held
    parent.free()
    assert cache.ledger.bytes_of("cache") == cache.tiers.arena.used == 0


@pytest.mark.parametrize("chunk", [64, 128])
def test_a_hit_goes_back_to_the_last_snapshot(model: ModelInfo, chunk: int) -> None:
    driver, cache = Hybrid(model), Cache(model)
    tokens = prompt(300)
    first = cache.create(tokens=tokens)
    for start in range(0, 300, chunk):
        driver.step(first, tokens[start : start + chunk])
        cache.publish(first, tokens)
    first.free()
    assert cache.ledger.bytes_of("cache") == 0 and cache.ledger.current == cache.ledger.bytes_of("tree")
    again = cache.create(tokens=tokens)
    assert again.hit == again.length == 256
    driver.check(again, tokens[:256])
    driver.step(again, tokens[256:])
    driver.check(again, tokens)
    shorter = cache.create(tokens=[*tokens[:140], *prompt(90, 5)])
    assert shorter.hit == 128, "of the pages that are alike, those that end where a state is known"
    driver.check(shorter, tokens[:128])
    other = cache.create(tokens=prompt(90, 5))
    assert other.hit == 0
    driver.check(other, [])


def test_pages_without_a_snapshot_are_a_miss(model: ModelInfo) -> None:
    driver, cache = Hybrid(model), Cache(model)
    tokens = prompt(200)
    first = cache.create(tokens=tokens)
    driver.step(first, tokens)
    cache.publish(first, tokens)
    assert cache.create(tokens=tokens).hit == 0


def test_snapshots_weigh_no_more_than_pages() -> None:
    model = dataclasses.replace(model_info(layers=2), states=(20_000, 0))
    driver = Driver(model)
    cache, tokens = Cache(model, tree_bytes=1 << 26), prompt(64 * 40)
    sequence = cache.create(tokens=tokens)
    page = cache.footprint((), 1, 1).steady_bytes - state_bytes(model)
    for start in range(0, len(tokens), PAGE):
        sequence.reserve(PAGE)
        driver._append(sequence, 1, tokens[start : start + PAGE], start)
        sequence.set_state(0, np.full(20_000, start, np.float32), PAGE)
        sequence.commit(PAGE)
        cache.publish(sequence, tokens)
    assert cache.tree is not None
    snapshots = [node.segments[-1] for node in cache.tree.nodes() if node.segments[-1] is not None]
    every = -(-snapshots[0].nbytes // page)
    assert every > 2
    assert 40 // every <= len(snapshots) <= 40 // every + 2
    assert sum(snapshot.nbytes for snapshot in snapshots) <= 41 * page + snapshots[0].nbytes
    assert cache.tree.nbytes == sum(segment.nbytes for segment in cache.tree.segments())
    hit = cache.create(tokens=tokens[: 64 * 39 + 5])
    assert 39 - hit.hit // PAGE <= every
    assert cache.create(tokens=[*tokens, 1]).hit == 64 * 40, "the newest is always there"
    cache.tree.clear()
    sequence.free(), hit.free()
    assert cache.ledger.bytes_of("tree") == 0


def test_states_move_to_disk_and_back(model: ModelInfo) -> None:
    driver, cache = Hybrid(model), Cache(model, disk=True)
    sequence, tokens = cache.create(), prompt(70)
    driver.step(sequence, tokens)
    sequence.park()
    cache.pressure(1 << 30)
    assert {segment.tier for segment in states_of(sequence).segments()} == {"disk"}
    with pytest.raises(RuntimeError, match="resume the sequence first"):
        sequence.state(0)
    sequence.resume()
    driver.check(sequence, tokens)
    driver.step(sequence, [1])
    driver.check(sequence, [*tokens, 1])


def test_a_snapshot_on_disk_is_a_hit(model: ModelInfo) -> None:
    driver, cache = Hybrid(model), Cache(model, disk=True)
    tokens = prompt(150)
    first = cache.create(tokens=tokens)
    driver.step(first, tokens[:128])
    cache.publish(first, tokens)
    first.free()
    cache.pressure(1 << 30)
    assert cache.ledger.current == 0
    again = cache.create(tokens=tokens)
    assert again.hit == 128
    driver.check(again, tokens[:128])


def test_a_recount_finds_the_same_books(model: ModelInfo) -> None:
    driver, cache = Hybrid(model), Cache(model, disk=True)
    tokens = prompt(150)
    first = cache.create(tokens=tokens, reservation=cache.reserve("first", 1 << 20))
    driver.step(first, tokens[:128])
    cache.publish(first, tokens)
    sequences = [first, first.fork(), cache.create(tokens=tokens)]

    def books() -> Any:
        segments = [segment for sequence in sequences for segment in sequence.segments()]
        counts = [(segment.references, segment.category) for segment in segments]
        used = None if first.reservation is None else first.reservation.used
        return cache.ledger.categories(), cache.ledger.current, cache.tiers.arena.used, counts, used

    before = books()
    cache.recount()
    after = books()
    assert after[1:] == before[1:]
    for name in ("cache", "tree"):
        assert after[0][name]["current"] == before[0][name]["current"]


def test_what_does_not_fit_is_refused_or_left_out(model: ModelInfo) -> None:
    big = dataclasses.replace(model, states=(1 << 20, 0, 0))
    with pytest.raises(BudgetError):
        Cache(big, memory="6MB").create()
    cache = Cache(big, memory="9MB")
    sequence = cache.create()
    assert states_of(sequence).nbytes == state_bytes(big) == 8 << 20
    states_of(sequence).take_snapshot(64)
    assert states_of(sequence).snapshot is None, "a snapshot takes only what is to spare"
    sequence.free()
    assert cache.ledger.current == 0


def test_a_view_takes_the_rows_and_gives_them_back(model: ModelInfo) -> None:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    driver, cache = Hybrid(model), Cache(model)
    sequence = cache.create()
    driver.step(sequence, prompt(5))
    driver._append(sequence, 1, [9], 5)
    for layer in model.state_layers:
        driver.recur(sequence, layer, [9])
    view = sequence.native
    assert [view.tokens(layer, 0) for layer in range(3)] == [1, 6, 1]
    sequence.native_view.drop_but_rows()
    assert states_of(sequence).pending == {0: 1, 2: 1}
    assert sequence.native.tokens(0, 0) == 1
    sequence.commit(1)
    assert sequence.native.tokens(0, 0) == 0
    driver.check(sequence, [*prompt(5), 9])


def test_a_snapshot_goes_before_anybody_is_refused(model: ModelInfo) -> None:
    driver, cache = Hybrid(model), Cache(model, memory="2MB")
    tokens = prompt(128)
    sequence = cache.create(tokens=tokens, reservation=cache.reserve("first", cache.footprint((), 128, 192).peak_bytes))
    driver.step(sequence, tokens)
    snapshot = states_of(sequence).snapshot
    assert snapshot is not None and cache.ledger.available is not None
    rest = cache.ledger.available
    cache.reserve("all the rest", rest).release()
    assert states_of(sequence).snapshot is snapshot, "what fits beside it lets it be"
    cache.reserve("all but the promises", rest + snapshot.nbytes)
    assert states_of(sequence).snapshot is None and cache.ledger.available == 0
    driver.step(sequence, prompt(64, 3))
    assert states_of(sequence).snapshot is None
    driver.check(sequence, [*tokens, *prompt(64, 3)])


@pytest.mark.parametrize("spare", [-1, 0])
def test_a_snapshot_stays_within_the_owners_bound(model: ModelInfo, spare: int) -> None:
    driver, cache = Hybrid(model), Cache(model)
    need, copy = cache.footprint((), 128, 192).peak_bytes, state_bytes(model) // 2
    sequence = cache.create(reservation=cache.reserve("first", need, need + copy + spare))
    driver.step(sequence, prompt(128))
    assert (states_of(sequence).snapshot is not None) == (spare == 0)


def test_a_snapshot_goes_where_the_owner_grows_to_its_bound(model: ModelInfo) -> None:
    driver, cache = Hybrid(model), Cache(model)
    page = cache.footprint((), 1, 1).steady_bytes - state_bytes(model)
    limit = state_bytes(model) + 2 * page
    sequence = cache.create(reservation=cache.reserve("first", 0, limit))
    driver.step(sequence, prompt(64))
    assert states_of(sequence).snapshot is not None
    sequence.reserve(1)
    assert states_of(sequence).snapshot is None and sequence.nbytes == limit


def test_snapshots_are_taken_where_they_may_be_published(model: ModelInfo) -> None:
    driver, tokens = Hybrid(model), prompt(64)
    for cache, publishes in ((Cache(model), False), (Cache(model, prefix_tree=False), True)):
        sequence = cache.create(publishes=publishes)
        driver.step(sequence, tokens)
        assert states_of(sequence).snapshot is None and sequence.fork().states is not None
    cache = Cache(model)
    sequence = cache.create()
    driver.step(sequence, tokens)
    assert states_of(sequence).snapshot is not None
    sequence.stop_snapshots()
    assert states_of(sequence).snapshot is None
    driver.step(sequence, tokens)
    assert states_of(sequence).snapshot is None


def test_the_tree_takes_a_snapshot_over(model: ModelInfo) -> None:
    driver, cache = Hybrid(model), Cache(model, disk=True)
    sequence, tokens = cache.create(), prompt(100)
    driver.step(sequence, tokens[:64])
    child = sequence.fork()
    assert states_of(child).snapshot is not None
    cache.publish(sequence, tokens)
    assert states_of(sequence).snapshot is None and cache.tree is not None
    kept = next(cache.tree.nodes()).segments[-1]
    assert kept is states_of(child).snapshot and kept is not None
    cache.pressure(1)
    assert kept.tier == "disk", "a running sequence that shares it does not need it"
    child.free()
    assert cache.create(tokens=tokens).hit == 64


def test_who_is_parked_comes_back_in_what_was_promised(model: ModelInfo) -> None:
    driver, cache = Hybrid(model), Cache(model, disk=True)
    cache.ledger.budget = need = cache.footprint((), 64, 128).peak_bytes + state_bytes(model) // 2
    sequence = cache.create(reservation=cache.reserve("first", need - state_bytes(model) // 2))
    driver.step(sequence, prompt(64))
    assert states_of(sequence).snapshot is not None
    sequence.park()
    other = cache.reserve("other", state_bytes(model) // 2)
    cache.pressure(1 << 30)
    sequence.resume()
    driver.check(sequence, prompt(64))
    other.release()


def test_a_hit_comes_back_from_disk_into_little_memory(model: ModelInfo) -> None:
    driver, tokens = Hybrid(model), prompt(100)
    page = Cache(model).footprint((), 1, 1).steady_bytes - state_bytes(model)
    hits = []
    for spare in range(0, page + state_bytes(model) + 1, 4096):
        cache = Cache(model, disk=True)
        first = cache.create(tokens=tokens)
        driver.step(first, tokens[:64])
        cache.publish(first, tokens)
        first.free()
        cache.pressure(1 << 30)
        cache.ledger.budget = state_bytes(model) + spare
        sequence = cache.create(tokens=tokens)
        driver.check(sequence, tokens[: sequence.hit])
        assert states_of(sequence).origin is None
        hits.append(sequence.hit)
    assert hits == sorted(hits) and hits[0] == 0 and hits[-1] == 64
