"""The prefix tree, and what happens when memory is short: nothing is lost, nothing is computed again."""

from __future__ import annotations

import numpy as np
import pytest
from tests.process_memory import process_memory
from tests.unit.cache.cache_driver import Driver, model_info, prompt

from thrifty import registry
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.cache.statistics import Statistics
from thrifty.errors import BudgetError

WINDOWED = model_info(windows=(None, 100))


def published(cache: Cache, tokens: list[int], **key: str) -> None:
    sequence = cache.create()
    Driver(cache.model).prefill(sequence, tokens)
    cache.publish(sequence, tokens, **key)
    sequence.free()


def test_a_hit_shares_pages_and_leaves_a_row_to_compute() -> None:
    cache = Cache(model_info())
    tokens = prompt(256)
    published(cache, tokens)
    held = cache.tiers.arena.used
    assert cache.ledger.bytes_of("tree") == held and cache.ledger.bytes_of("cache") == 0
    sequence = cache.create(tokens=tokens)
    assert sequence.hit == 192, "the last page would leave nothing to compute"
    assert cache.tiers.arena.used == held
    assert cache.create(tokens=[*tokens, 1]).hit == 256
    assert cache.create(tokens=[*tokens[:100], *prompt(200, seed=5)]).hit == 64
    assert cache.create(tokens=prompt(200, seed=5)).hit == 0


def test_roots_are_apart_by_adapter_and_salt() -> None:
    cache = Cache(model_info())
    tokens = prompt(200)
    published(cache, tokens, salt="alice")
    assert cache.create(tokens=tokens).hit == 0
    assert cache.create(tokens=tokens, salt="alice", adapter="legal").hit == 0
    assert cache.create(tokens=tokens, salt="alice").hit == 192


def test_a_windowed_group_needs_only_its_last_window() -> None:
    cache = Cache(WINDOWED)
    driver, tokens = Driver(WINDOWED), prompt(640)
    published(cache, tokens)
    hit, miss = cache.create(tokens=[*tokens, 1]), cache.create()
    assert hit.hit == 640
    assert hit.slots(1) <= 192, "the pages before its window are not there"
    driver.prefill(hit, [*tokens, 1])
    driver.prefill(miss, [*tokens, 1])
    assert np.array_equal(np.stack(driver.step(hit, [3])), np.stack(driver.step(miss, [3])))
    assert cache.create(tokens=[*tokens[:320], 1]).hit == 0, "the window of that length was let go of"
    published(cache, tokens[:320])
    assert cache.create(tokens=[*tokens[:320], 1]).hit == 320


def test_a_model_of_windowed_layers_only_is_shared_too() -> None:
    model = model_info(windows=(100, 100))
    cache, driver, tokens = Cache(model), Driver(model), prompt(512)
    published(cache, tokens)
    hit, miss = cache.create(tokens=[*tokens, 1]), cache.create()
    assert hit.hit == 512 and hit.slots(0) <= 192
    driver.prefill(miss, tokens)
    assert np.array_equal(np.stack(driver.step(hit, [3])), np.stack(driver.step(miss, [3])))


def test_a_hit_without_a_wanted_statistic_is_a_miss() -> None:
    cache = Cache(model_info())
    tokens = prompt(300)
    h2o = registry.build("cache", {"technique": "h2o"})
    published(cache, tokens)
    assert cache.create([h2o], tokens=tokens).hit == 0
    donor = cache.create(collect=Statistics(column_sums=True))
    Driver(cache.model).prefill(donor, tokens[:128])
    cache.publish(donor, tokens)
    assert cache.create([h2o], tokens=tokens).hit == 128
    assert cache.create(tokens=tokens).hit == 256


def test_enough_rows_are_left_for_the_queries_a_policy_wants() -> None:
    cache = Cache(model_info())
    tokens = prompt(200)
    published(cache, tokens)
    assert cache.create([registry.build("cache", {"technique": "snapkv", "window": 8})], tokens=tokens).hit == 192
    assert cache.create([registry.build("cache", {"technique": "snapkv", "window": 9})], tokens=tokens).hit == 128


def test_compressed_sequences_publish_nothing() -> None:
    cache = Cache(model_info())
    sequence = cache.create([registry.build("cache", {"technique": "kivi", "residual": 0})])
    tokens = prompt(200)
    Driver(cache.model).prefill(sequence, tokens)
    assert cache.publish(sequence, tokens) == 0


def test_the_bound_evicts_the_least_recently_used_leaf() -> None:
    model = model_info()
    page = Cache(model).footprint((), 1, 64).steady_bytes
    cache = Cache(model, tree_bytes=6 * page)
    first, second, third = prompt(192, seed=1), prompt(192, seed=2), prompt(128, seed=3)
    published(cache, first)
    published(cache, second)
    assert cache.create(tokens=[*first, 1]).hit == 192
    published(cache, third)
    assert cache.create(tokens=[*first, 1]).hit == 192, "used after the second"
    assert cache.create(tokens=[*second, 1]).hit == 64, "its leaves went, its beginning stayed"
    assert cache.create(tokens=[*third, 1]).hit == 128
    tree = cache.tree
    assert tree is not None and tree.nbytes == cache.tiers.arena.used == 6 * page
    tree.clear()
    assert cache.ledger.current == 0 and tree.nbytes == 0


def test_under_pressure_the_tree_goes_to_disk_and_returns() -> None:
    model = model_info()
    tokens = prompt(320)
    page = Cache(model).footprint((), 1, 64).steady_bytes
    cache = Cache(model, memory=8 * page, disk=True, tree_bytes=100 * page)
    driver = Driver(model)
    published(cache, tokens)
    other = cache.create()
    driver.prefill(other, prompt(448, seed=7))
    assert cache.tiers.disk is not None and cache.tiers.disk.used > 0
    assert cache.ledger.current <= 8 * page
    other.free()
    hit, miss = cache.create(tokens=[*tokens, 1]), None
    assert hit.hit == 320, "nothing is computed again"
    found = np.stack(driver.step(hit, [1]))
    hit.free()
    cache = Cache(model)
    miss = cache.create()
    driver.prefill(miss, tokens)
    assert np.array_equal(found, np.stack(driver.step(miss, [1])))


@pytest.mark.parametrize("disk", [True, None])
def test_the_pages_of_a_hit_never_make_room_for_each_other(disk: bool | None) -> None:
    model, tokens = model_info(), prompt(192)
    page = Cache(model).footprint((), 1, 64).steady_bytes
    cache = Cache(model, memory=5 * page, disk=disk, tree_bytes=100 * page)
    published(cache, tokens)
    hits = []
    for pages in range(6):  # promised to another: what is left holds all of the tree, a part, nothing
        other = cache.reserve("another request", pages * page)
        hit = cache.create(tokens=[*tokens, 1])
        assert all(segment.run is not None for segment in hit.segments()), "what is held is in memory"
        hits.append(hit.hit)
        hit.free()
        other.release()
    assert hits == ([192, 192, 192, 0, 0, 0] if disk else [192, 192, 192, 128, 64, 0])
    assert cache.create(tokens=[*tokens, 1]).hit == (192 if disk else 0)


def test_a_sequence_that_comes_back_is_whole_in_memory_or_still_parked() -> None:
    model, tokens = model_info(), prompt(192)
    page = Cache(model).footprint((), 1, 64).steady_bytes
    came_back = []
    for room in range(1, 5):
        cache = Cache(model, memory=6 * page, disk=True, tree_bytes=100 * page)
        published(cache, tokens[:128])
        sequence = cache.create(tokens=tokens, reservation=cache.reserve("request", 3 * page))
        Driver(model).prefill(sequence, tokens)
        sequence.park()
        cache.pressure(2 * page)  # the shared pages leave first, its own stays
        other = cache.reserve("another request", (5 - room) * page)
        try:
            sequence.resume()
            came_back.append(room)
        except BudgetError:
            assert sequence.parked
        else:
            assert all(segment.tier == "memory" for segment in sequence.segments())
        other.release()
        sequence.free()
    assert came_back and came_back[0] > 1, "both cases are to be seen"


def test_without_a_disk_tier_the_tree_gives_way() -> None:
    model = model_info()
    page = Cache(model).footprint((), 1, 64).steady_bytes
    cache = Cache(model, memory=8 * page, tree_bytes=100 * page)
    published(cache, prompt(320))
    other = cache.create()
    Driver(model).prefill(other, prompt(448, seed=7))
    assert cache.ledger.current <= 8 * page and cache.tree is not None and cache.tree.nbytes <= page


@pytest.mark.parametrize("names", [[], ["kivi"], ["snapkv", "kivi"], ["h2o"]])
def test_parked_sequences_go_to_disk_and_come_back_to_the_bit(names: list[str]) -> None:
    model = WINDOWED
    policies = [registry.build("cache", {"technique": name}) for name in names]
    need = Cache(model).footprint(policies, 400, 500)
    driver = Driver(model)
    alone = Cache(model).create(policies)
    driver.prefill(alone, prompt(400, 1))
    expected = [np.stack(driver.step(alone, [token])) for token in range(70)]
    cache = Cache(model, memory=need.peak_bytes + need.steady_bytes // 3, disk=True)

    def admit(seed: int) -> SequenceCache:
        sequence = cache.create(policies, reservation=cache.reserve("request", need.peak_bytes))
        driver.prefill(sequence, prompt(400, seed))
        return sequence

    first = admit(1)
    with pytest.raises(BudgetError, match="would fit"):
        cache.reserve("request", need.peak_bytes)
    first.park()
    held = cache.tiers.arena.used
    second = admit(2)
    assert cache.pressure(held) > 0 or all(one.tier == "disk" for one in first.segments())
    assert cache.tiers.disk is not None and cache.tiers.disk.used > 0
    with pytest.raises(BudgetError):
        first.resume()
    assert first.parked
    second.park()
    first.resume()
    for token, want in enumerate(expected):
        assert np.array_equal(np.stack(driver.step(first, [token])), want)
    first.free()
    second.resume()
    driver.step(second, [1])
    second.free()
    assert cache.ledger.committed == 0 and cache.tiers.disk.used == 0


def test_the_sequence_that_was_parked_first_goes_to_disk_first() -> None:
    cache = Cache(model_info(), disk=True, prefix_tree=False)
    driver = Driver(cache.model)
    sequences = [cache.create() for _ in range(8)]
    for place, sequence in enumerate(sequences):
        driver.prefill(sequence, prompt(64, seed=place))
    order = [3, 6, 1, 7, 0, 5, 2, 4]
    for place in order:
        sequences[place].park()
    sequences[3].resume()
    sequences[3].park()  # it was used last
    gone = []
    for _ in order:
        cache.pressure(1)
        away = [place for place, one in enumerate(sequences) if one.segments()[0].tier == "disk"]
        gone += [place for place in away if place not in gone]
    assert gone == [*order[1:], 3]


def test_a_sequence_that_is_only_dropped_gives_its_bytes_back() -> None:
    cache = Cache(model_info())
    sequence = cache.create()
    Driver(cache.model).prefill(sequence, prompt(100))
    del sequence
    assert cache.ledger.current == 0


def test_a_full_disk_loses_nothing() -> None:
    model = model_info()
    page = Cache(model).footprint((), 1, 64).steady_bytes
    cache, driver = Cache(model, memory=8 * page, disk=True, disk_bytes=2 * page), Driver(model)
    parked = cache.create()
    driver.prefill(parked, prompt(320))
    twin = parked.fork()
    expected = np.stack(driver.step(twin, [9]))
    twin.free()
    parked.park()
    other = cache.create()
    with pytest.raises(BudgetError):
        driver.prefill(other, prompt(512, seed=2))
    other.free()
    parked.resume()
    assert np.array_equal(np.stack(driver.step(parked, [9])), expected)


@pytest.mark.long
def test_process_memory_falls_with_the_ledger() -> None:
    model = model_info(layers=30, heads=9, kv_heads=3, head_dim=64, format="bf16")
    cache = Cache(model, disk=True)
    before = process_memory()
    sequences = [cache.create() for _ in range(4)]
    for sequence in sequences:
        sequence.reserve(2432)
        for segment in sequence.segments():
            segment.slab(0, 0)
            segment.run.pieces.fill(1)  # type: ignore[union-attr]
        sequence.commit(2432)
    held = cache.ledger.current
    assert held > 200e6
    assert abs(process_memory() - before - held) < max(0.05 * held, 15e6)
    assert abs(cache.tiers.arena.resident() - held) < 0.02 * held
    for sequence in sequences[:2]:
        sequence.park()
    assert cache.pressure(held // 2) >= held // 2
    assert abs(process_memory() - before - cache.ledger.current) < 15e6
    sequences[0].resume()
    assert abs(process_memory() - before - cache.ledger.current) < 15e6
    for sequence in sequences:
        sequence.free()
    assert cache.ledger.current == 0 and process_memory() - before < 15e6
