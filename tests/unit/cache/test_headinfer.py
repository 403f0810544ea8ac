"""HeadInfer: what is held in memory, what is read from disk, and that nothing is lost."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from tests.unit.cache.cache_driver import Driver, model_info, prompt
from tests.unit.cache.test_cache_native import native_prefill, native_step

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.cache.policy import CachePolicy
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.errors import RecipeError, StorageError
from thrifty.formats import kv
from thrifty.kernels import dispatch

MODEL = model_info(layers=3, heads=6, kv_heads=3, head_dim=64, format="bf16")
PAGE_BYTES = 64 * 64 * 2 * 2  # of a head: keys and values, bf16
native = pytest.mark.skipif(dispatch.native() is None, reason="the native module is not built or turned off")


def build(*names: str, heads: int = 1) -> list[CachePolicy]:
    options: dict[str, dict[str, Any]] = {
        "headinfer": {"heads": heads},
        "kivi": {"residual": 64},
        "snapkv": {"window": 8, "keep": 0.5},
        "ada-kv": {"window": 8, "keep": 0.5},
        "streaming": {"window": 150},
    }
    return [registry.build("cache", {"technique": name} | options.get(name, {})) for name in names]


def begun(cache: Cache, policies: list[CachePolicy], tokens: list[int]) -> SequenceCache:
    sequence = cache.create(policies)
    if sequence.layer_major:
        native_prefill(sequence, tokens)
    else:
        native_step(sequence, tokens, decodes=False)
    return sequence


def step(sequence: SequenceCache, token: int) -> Floats:
    return np.stack(native_step(sequence, [token]))


def test_the_reference_attends_to_all_that_was_written() -> None:
    """Head by head over every key: what the paper's attention head by head computes, written without a cache."""
    model, tokens = model_info(layers=2, heads=4, kv_heads=2), prompt(200)
    sequence = Cache(model, disk=True).create(build("headinfer"))
    Driver(model).prefill(sequence, tokens)
    for token in range(140):
        tokens.append(token)
        outputs = Driver(model).step(sequence, [token])
        if token % 20 == 0:
            for layer in range(2):
                assert np.allclose(outputs[layer], Driver(model).dense(layer, tokens, 1), atol=1e-5)


@native
@pytest.mark.parametrize("heads", [1, 2, 3, 8])
@pytest.mark.parametrize("before", [[], ["kivi"], ["snapkv"], ["ada-kv"], ["ada-kv", "kivi"], ["streaming"]])
def test_rows_have_the_bits_of_the_cache_in_memory(before: list[str], heads: int) -> None:
    there = begun(Cache(MODEL, disk=True), build(*before), prompt(300))
    away = begun(Cache(MODEL, disk=True), build(*before, "headinfer", heads=heads), prompt(300))
    for token in range(150):
        assert np.array_equal(step(away, token), step(there, token)), token
    tiers = [[span.segment.tier for span in spans] for spans in away.spans]
    assert all("memory" not in own[: -2 * len(build(*before)) - 1] for own in tiers), "all but what filled since"
    assert sum(own.count("disk") for own in tiers) >= 3


@native
def test_memory_holds_two_groups_and_the_open_pages_and_each_step_reads_the_rest() -> None:
    """α = 1 / (layers · heads) of the cache twice (the paper's ping-pong buffers), beside the page that is filled."""
    cache, n = Cache(MODEL, disk=True), 64 * 20
    sequence = begun(cache, build("headinfer"), prompt(n))
    step(sequence, 1)
    group, disk = 20 * PAGE_BYTES, cache.tiers.disk
    assert disk is not None and disk.used == 9 * group
    assert cache.ledger.bytes_of("cache") == 2 * group + 9 * PAGE_BYTES == cache.tiers.arena.used
    sequence.native_view.follow(sums=False)
    before = disk.read_bytes
    step(sequence, 2)
    sequence.native_view.follow(sums=False)
    assert disk.read_bytes - before == 9 * group, "every byte of every layer and head, once"
    sequence.free()
    assert cache.ledger.current == cache.tiers.arena.used == disk.used == 0


@native
def test_forks_and_parked_sequences_leave_their_slots_on_disk() -> None:
    cache = Cache(MODEL, disk=True)
    there = begun(cache, [], prompt(300))
    sequence = begun(cache, build("headinfer"), prompt(300))
    fork = sequence.fork()
    assert cache.tiers.disk is not None
    for token in range(80):
        expected = step(there, token)
        for each in (sequence, fork):
            if token % 30 == 0:
                each.park()
                held = cache.tiers.disk.used
                each.resume()
                assert cache.tiers.disk.used == held, "only what steps need in memory comes back"
            assert np.array_equal(step(each, token), expected)
    sequence.free()
    assert np.array_equal(step(fork, 3), step(there, 3))
    fork.free()
    there.free()
    assert cache.ledger.current == 0 and cache.tiers.disk.used == 0


@native
def test_counted_from_the_bottom_its_buffers_are_its_own() -> None:
    cache = Cache(MODEL, disk=True)
    there, away = begun(cache, [], prompt(300)), begun(cache, build("headinfer"), prompt(300))
    step(there, 1), step(away, 1)
    before, disk = cache.ledger.current, cache.tiers.disk
    assert disk is not None
    on_disk = disk.used
    cache.recount()
    assert cache.ledger.current == before == cache.tiers.arena.used and disk.used == on_disk
    assert np.array_equal(step(away, 2), step(there, 2))


@native
def test_going_back_and_on_again() -> None:
    cache = Cache(MODEL, disk=True)
    there, away = begun(cache, [], prompt(300)), begun(cache, build("headinfer"), prompt(300))
    for each in (there, away):
        for token in range(100):
            step(each, token)
        each.truncate(90)
    for token in range(100):
        assert np.array_equal(step(away, token), step(there, token))


@native
def test_a_read_that_fails_ends_the_step_with_its_reason_and_changes_nothing() -> None:
    cache = Cache(MODEL, disk=True)
    sequence = begun(cache, build("headinfer"), prompt(300))
    step(sequence, 1)
    assert cache.tiers.disk is not None
    os.ftruncate(cache.tiers.disk._file.fileno(), 4096)
    with pytest.raises(RuntimeError, match="cannot read slots from the disk tier: its file ends before them"):
        step(sequence, 2)
    sequence.free()
    assert cache.ledger.current == 0


def test_a_full_disk_is_an_error_with_the_room_that_there_is() -> None:
    cache = Cache(MODEL, disk=True, disk_bytes=64 * 1024)
    sequence = cache.create(build("headinfer"))
    with pytest.raises(StorageError, match=r"the disk tier is full: .* of 66 kB|the disk tier is full"):
        Driver(MODEL).prefill(sequence, prompt(300))
    sequence.free()
    assert cache.ledger.current == 0 and cache.tiers.disk is not None and cache.tiers.disk.used == 0


def test_without_a_disk_tier_it_is_refused() -> None:
    with pytest.raises(StorageError, match="this cache has no disk tier"):
        Cache(MODEL).create(build("headinfer"))


def test_a_number_that_is_no_key_goes_to_disk_and_back() -> None:
    """A key that is not finite is the request's own trouble: its bits are moved like any others."""
    cache = Cache(model_info(layers=1, heads=1, kv_heads=1, format="f32"), disk=True)
    sequence = cache.create(build("headinfer"))
    rows = np.full((70, 1, 16), np.nan, np.float32)
    sequence.begin_layer(0, 70)
    sequence.append(0, rows, rows)
    sequence.seal_layer(0)
    sequence.commit(70)
    keys, values, _, _ = sequence.spans[0][0].read(0, 0)
    assert sequence.spans[0][0].segment.tier == "disk" and np.isnan(keys).all() and np.isnan(values).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["headinfer", "kivi"], "'kivi' comes behind it: put 'headinfer' last"),
        (["headinfer", "headinfer"], "'headinfer' moves to disk what the others leave|evicts"),
        (["quest", "headinfer"], "'quest' selects what rows attend to"),
        (["kvzip", "headinfer"], "'kvzip' judges the whole prompt"),
        (["h2o", "headinfer"], "'h2o' evicts single slots while decoding"),
        (["fastgen", "headinfer"], "'fastgen' evicts single slots while decoding"),
    ],
)
def test_what_it_cannot_stand_beside_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Cache(MODEL, disk=True).create(build(*names))


def test_no_group_of_no_heads() -> None:
    with pytest.raises(RecipeError, match="heads = 0; use the KV heads of a group, 1 or more"):
        build("headinfer", heads=0)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_buffers_are_promised(heads: int) -> None:
    policies = build("headinfer", heads=heads)
    promised = Cache(MODEL).footprint(policies, 6400, 6500)
    slab = kv.slab_bytes("bf16", 64, 64)
    assert promised.steady_bytes >= 2 * heads * 101 * slab + 9 * slab
    assert promised.steady_bytes <= 2 * heads * 105 * slab + 40 * slab, "and little beyond"
