"""What native attention sees of slots that are not all there: holes of evicted slots, selections, segments on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from tests.unit.cache.cache_driver import Driver, model_info, prompt
from tests.unit.cache.test_cache_native import native_prefill, native_step
from tests.unit.kernels.native_pages import using

from thrifty.arrays import Integers, largest
from thrifty.cache.editing.apply import apply_edits
from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.view import LayerView
from thrifty.errors import BudgetError, KernelError
from thrifty.kernels import dispatch

pytestmark = pytest.mark.skipif(dispatch.native() is None, reason="the native module is not built or turned off")

MODEL = model_info(windows=(None, 100, None), heads=4, kv_heads=2, head_dim=64, format="bf16")
SUMS = Statistics(column_sums=True, decode=True)


@pytest.fixture(autouse=True)
def single_products() -> Iterator[None]:
    """fp32 products natively: AVX-512 rounds queries to bf16."""
    with using("avx2"):
        yield


@dataclass(frozen=True, kw_only=True)
class Sieve(CachePolicy):
    """Codes for the whole prompt, then holes: every 16 tokens only the slots with the greatest column sums stay."""

    name = "sieve"
    period: int = 16
    capacity: int = 90

    def wants(self, model: ModelInfo) -> Statistics:
        return SUMS

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        return Edits().store(0, None, "int8", layer=layer.index)

    def after_decode(self, layers: list[LayerView], stats: list[Stats]) -> Edits | None:
        edits = Edits()
        for kv, known in zip(layers, stats, strict=True):
            assert known.column_sums is not None
            sums = [own.sum(axis=0) for own in known.column_sums]
            assert [len(own) for own in sums] == [kv.count(head) for head in range(kv.kv_heads)]
            edits.keep([np.sort(largest(own, self.capacity)) for own in sums], layer=kv.layer)
        return edits


def sums_of(sequence: SequenceCache, layer: int) -> list[np.ndarray]:
    found = sequence.stats(layer).column_sums
    assert found is not None
    return found


def near(one: SequenceCache, other: SequenceCache) -> None:
    """The same slots and nearly the same sums in all global layers."""
    for layer in one.policy_layers:
        for head, (mine, theirs) in enumerate(zip(sums_of(one, layer), sums_of(other, layer), strict=True)):
            assert np.array_equal(one.view(layer).positions(head), other.view(layer).positions(head))
            assert mine.shape == theirs.shape and np.allclose(mine, theirs, atol=1e-4)


def sieved() -> tuple[SequenceCache, SequenceCache]:
    """A sequence with holes, by the reference path and natively."""
    reference, native = Cache(MODEL).create([Sieve()]), Cache(MODEL).create([Sieve()])
    Driver(MODEL).prefill(reference, prompt(250))
    native_prefill(native, prompt(250))
    return reference, native


def test_column_sums_over_holes_are_those_of_the_reference() -> None:
    driver, (reference, native) = Driver(MODEL), sieved()
    for step in range(60):
        rows, accepted = ([step], 1) if step % 2 else ([step] * 4, 3)
        theirs, ours = driver.step(reference, rows, accepted), native_step(native, rows, accepted)
        assert all(np.allclose(a, b, atol=2e-4) for a, b in zip(ours, theirs, strict=True)), step
        near(native, reference)
    assert any(span.segment.holes for span in native.spans[0]), "slots of codes became holes"
    assert native.place_counts(0)[0] > native.slots(0, 0)
    assert native.native.tokens(0, 0) == native.place_counts(0)[0]
    holes = [own for own in native.spans[0] if own.segment.holes]
    assert native.collector._sums.head(0, 0)[:, 0 : holes[0].tokens].min() == 0, "a hole gets no probability"


def test_a_second_prompt_adds_to_the_sums_over_holes() -> None:
    driver, (reference, native) = Driver(MODEL), sieved()
    for step in range(20):
        driver.step(reference, [step]), native_step(native, [step])
    tokens = [*prompt(250), *range(20), *prompt(100, 4)]
    driver.prefill(reference, tokens)
    native_prefill(native, tokens)
    near(native, reference)
    for step in range(20):
        driver.step(reference, [step]), native_step(native, [step])
    near(native, reference)


@pytest.mark.parametrize("length", [290, 268, 240])
def test_going_back_keeps_the_sums_of_what_is_left(length: int) -> None:
    model = model_info(heads=4, kv_heads=2, head_dim=64, format="bf16")
    driver, reference, native = Driver(model), Cache(model).create([Sieve()]), Cache(model).create([Sieve()])
    driver.prefill(reference, prompt(250))
    native_prefill(native, prompt(250))
    for step in range(50):
        driver.step(reference, [step]), native_step(native, [step])
    before = sums_of(native, 0)[0].copy()
    positions = native.view(0).positions(0)
    for sequence in (reference, native):
        sequence.truncate(300 - length)
    near(native, reference)
    left = int((positions < length).sum())
    assert np.array_equal(sums_of(native, 0)[0][:, :left], before[:, :left])
    for step in range(20):
        driver.step(reference, [step]), native_step(native, [step])
    near(native, reference)


def test_merging_beside_holes_sums_the_right_slots() -> None:
    sequence = Cache(MODEL).create(collect=SUMS)
    for start in range(0, 256, 64):
        native_step(sequence, prompt(256)[start : start + 64])
    kept = np.concatenate((np.arange(0, 128, 2), np.arange(128, 256)))
    apply_edits(sequence, sequence.collector, Edits().store(0, 128, "int8").keep(kept), (0, 2))
    assert sequence.spans[0][0].segment.holes and not sequence.spans[0][-1].segment.quantised
    before = sums_of(sequence, 0)[1].copy()
    mean = np.ones((1, 64), np.float32)
    apply_edits(
        sequence, sequence.collector, Edits().merge([np.array([100, 103, 150])], mean, mean, layer=0, head=1), (0, 2)
    )
    after = sums_of(sequence, 0)[1]
    rest = np.delete(np.arange(192), [100, 103, 150])
    assert np.allclose(after[:, 100], before[:, [100, 103, 150]].sum(axis=1))
    assert np.array_equal(np.delete(after, 100, axis=1), before[:, rest])
    assert np.allclose(after.sum(), before.sum())


# --- selections --------------------------------------------------------------------------------------


def select(sequence: SequenceCache, *slots: Integers | None) -> None:
    edits = Edits()
    for layer, own in zip((0, 2), slots, strict=True):
        edits.select(None if own is None else [own, own[: len(own) // 2]], layer=layer)
    apply_edits(sequence, sequence.collector, edits, (0, 2))


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("chosen", [np.array([3, 5, 200, 201]), np.arange(0, 256, 3), np.arange(0)])
@pytest.mark.long
def test_a_selection_is_seen_natively(chosen: Integers, sums: bool) -> None:
    driver = Driver(MODEL)
    reference, native = (Cache(MODEL).create(collect=SUMS if sums else None) for _ in range(2))
    driver.prefill(reference, prompt(300))
    for start in range(0, 300, 60):
        native_step(native, prompt(300)[start : start + 60])
    for step in range(90):
        if step in (2, 80):
            select(reference, chosen, chosen), select(native, chosen, chosen)
        if step == 70:
            select(reference, None, chosen), select(native, None, chosen)
        rows, accepted = ([step], 1) if step % 2 else ([step] * 4, 2)
        theirs, ours = driver.step(reference, rows, accepted), native_step(native, rows, accepted)
        assert all(np.allclose(a, b, atol=2e-4) for a, b in zip(ours, theirs, strict=True)), step
        if sums:
            near(native, reference)
    seen = native.native.tokens(2, 0)
    if sums:
        assert seen == native.slots(2), "columns are places: all are pushed"
    elif len(chosen) < 10:
        assert seen < native.slots(2), "pages without a selected slot are left out"
    assert native.index_bytes > 0
    native.native_view.drop()
    assert sums or native.index_bytes == 0


def test_a_selection_over_holes_is_seen_natively() -> None:
    driver, (reference, native) = Driver(MODEL), sieved()
    for step in range(20):
        driver.step(reference, [step]), native_step(native, [step])
    chosen = np.arange(0, 80, 2)
    for step in range(10):
        select(reference, chosen, chosen), select(native, chosen, chosen)
        theirs, ours = driver.step(reference, [step]), native_step(native, [step])
        assert all(np.allclose(a, b, atol=2e-4) for a, b in zip(ours, theirs, strict=True))
        near(native, reference)


def test_going_back_leaves_what_was_selected_of_the_rest() -> None:
    model = model_info(heads=4, kv_heads=2, head_dim=64, format="bf16")
    reference, native = Cache(model).create(), Cache(model).create()
    Driver(model).prefill(reference, prompt(300))
    native_step(native, prompt(300))
    chosen = np.arange(0, 256, 3)
    for sequence in (reference, native):
        apply_edits(sequence, sequence.collector, Edits().select([chosen, chosen], layer=1), (0, 1))
        sequence.truncate(150)
    theirs, ours = Driver(model).step(reference, [5]), native_step(native, [5])
    assert all(np.allclose(a, b, atol=2e-4) for a, b in zip(ours, theirs, strict=True))


def test_a_selection_changes_the_view_in_its_place() -> None:
    """The same answers, to the bit, as of a view that is made anew for each selection; and its bytes go with it."""
    model = model_info(heads=4, kv_heads=2, head_dim=64, format="bf16")
    kept, anew = Cache(model).create(), Cache(model).create()
    for sequence in (kept, anew):
        native_step(sequence, prompt(300))
    view, random = kept.native, np.random.default_rng(3)
    for step in range(90):
        if step % 30 == 29:
            choice = None
        else:
            choice = [np.sort(random.choice(256, size=60, replace=False)) for _ in range(2)]
        for sequence in (kept, anew):
            apply_edits(sequence, sequence.collector, Edits().select(choice, layer=1), (0, 1))
        anew.native_view.drop()
        ours, expected = native_step(kept, [step]), native_step(anew, [step])
        assert all(np.array_equal(a, b) for a, b in zip(ours, expected, strict=True)), step
        assert kept.native is view and kept.index_bytes == anew.index_bytes
        assert (kept.index_bytes > 0) == (choice is not None)
    kept.truncate(20), anew.truncate(20)
    ours, expected = native_step(kept, [1]), native_step(anew, [1])
    assert all(np.array_equal(a, b) for a, b in zip(ours, expected, strict=True))
    kept.free()
    assert kept.tiers.ledger.current == 0


def test_a_selection_whose_biases_do_not_fit_is_told_at_the_next_step() -> None:
    model = model_info(heads=4, kv_heads=2, head_dim=64, format="bf16")
    cache = Cache(model, memory="10MB", prefix_tree=False)
    sequence = cache.create()
    native_step(sequence, prompt(300))
    assert cache.ledger.available is not None
    cache.ledger.charge("workspace", cache.ledger.available - 100)
    chosen = np.arange(0, 256, 3)
    apply_edits(sequence, sequence.collector, Edits().select([chosen, chosen], layer=1), (0, 1))
    with pytest.raises(BudgetError):
        _ = sequence.native
    sequence.select(1, None)
    assert sequence.native is not None and sequence.index_bytes == 0


# --- segments on disk --------------------------------------------------------------------------------


def moved(cache: Cache, tier: str) -> SequenceCache:
    """A sequence of 320 tokens; all but the last page of each global layer lies in `tier`."""
    sequence = cache.create()
    for start in range(0, 320, 80):
        native_step(sequence, prompt(320)[start : start + 80])
    apply_edits(sequence, sequence.collector, Edits().store(0, 128, "int4").move(0, 256, tier), (0, 2))
    return sequence


def test_segments_on_disk_are_seen_in_memory_of_the_view() -> None:
    cache = Cache(MODEL, disk=True)
    plain, away = moved(cache, "memory"), moved(cache, "disk")
    cold = cache.ledger.current
    assert away.view(0).stretches()[0].tier == "disk"
    for step in range(140):
        ours, expected = native_step(away, [step]), native_step(plain, [step])
        assert all(np.array_equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert {one.tier for one in away.segments()} == {"memory", "disk"}, "they stay there"
    copies = list(away.native_view.copies())
    held = sum(one.nbytes for one in copies)
    assert cache.ledger.bytes_of("scratch") == held > 0 and cache.ledger.current > cold
    before = cache.ledger.categories()
    cache.recount()
    assert cache.ledger.categories()["scratch"] == before["scratch"] and copies[0].run is not None
    native_step(away, [1])
    away.park()
    assert cache.ledger.bytes_of("scratch") == 0
    with pytest.raises(RuntimeError, match="resume it first"):
        _ = away.native
    away.resume()
    assert np.array_equal(native_step(away, [2])[0], native_step(moved_on(plain), [2])[0])
    away.free(), plain.free()
    assert cache.ledger.current == 0 and cache.tiers.disk is not None and cache.tiers.disk.used == 0


def moved_on(sequence: SequenceCache) -> SequenceCache:
    native_step(sequence, [1])
    return sequence


def test_a_view_that_does_not_fit_is_refused_and_leaves_no_copy() -> None:
    cache = Cache(MODEL, disk=True, memory=2_000_000)
    sequence = moved(cache, "disk")
    other = cache.reserve("another", (cache.ledger.available or 0) - 20_000)
    with pytest.raises(BudgetError):
        _ = sequence.native
    assert cache.ledger.bytes_of("scratch") == 0
    other.release()
    assert np.isfinite(native_step(sequence, [1])[0]).all()


def test_a_head_dimension_that_native_code_does_not_take_is_named() -> None:
    odd = Cache(model_info(head_dim=15)).create()
    with pytest.raises(KernelError, match=r"head dimension.*15.*--reference"):
        _ = odd.native


def test_holes_stay_holes_where_a_shared_segment_moves_to_disk() -> None:
    cache = Cache(MODEL, disk=True)
    sequence = cache.create([Sieve(capacity=150)])
    native_prefill(sequence, prompt(250))
    for step in range(20):
        native_step(sequence, [step])
    fork = sequence.fork()
    assert sequence.spans[0][0].segment.holes
    apply_edits(sequence, sequence.collector, Edits().move(0, None, "disk"), (0, 2))
    assert {stretch.tier for stretch in sequence.view(0).stretches()} == {"disk"}
    assert {stretch.tier for stretch in fork.view(0).stretches()} == {"memory"}
    near(sequence, fork)
    for step in range(20):
        ours, theirs = native_step(sequence, [step]), native_step(fork, [step])
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    sequence.free(), fork.free()
    assert cache.ledger.current == 0
