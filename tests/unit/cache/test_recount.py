"""The books counted from the bottom are those that were kept call by call, and repair what an error left."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.cache.cache_driver import Driver, contents, model_info, prompt

from thrifty import registry
from thrifty.cache.pool import Cache
from thrifty.cache.rehearsals import Rehearsals
from thrifty.cache.sequence import SequenceCache
from thrifty.cache.slots.segment import Segment
from thrifty.cache.statistics import Statistics

RECIPES: dict[str, list[dict[str, Any]]] = {
    "full": [],
    "kivi": [{"technique": "kivi", "bits": 2, "residual": 64}],
    "snapkv+kivi": [{"technique": "snapkv", "capacity": 64}, {"technique": "kivi", "bits": 4, "residual": 64}],
    "kivi+h2o": [{"technique": "h2o", "capacity": 100}, {"technique": "kivi", "bits": 4, "residual": 64}],
    "streaming": [{"technique": "streaming", "window": 64}],
    "kvzip": [{"technique": "kvzip", "keep": 0.5, "chunk": 64}],
}
MODEL = model_info(layers=3, windows=(None, 100, None))


def filled(cache: Cache, recipe: str, length: int, steps: int = 10) -> SequenceCache:
    """A sequence with a prompt and decoded rows, drawing from a reservation."""
    policies = [registry.build("cache", table) for table in RECIPES[recipe]]
    reservation = cache.reserve(recipe, 1 << 20)
    tokens = prompt(length, length)
    sequence = cache.create(policies, tokens=tokens, reservation=reservation)
    driver = Driver(MODEL)
    driver.prefill(sequence, tokens)
    if not policies:
        cache.publish(sequence, tokens)
    for step in range(steps):
        driver.step(sequence, [step])
    return sequence


def books(cache: Cache, sequences: list[SequenceCache]) -> Any:
    """Everything that a recount makes anew."""
    ledger, tiers = cache.ledger, cache.tiers
    assert cache.tree is not None and tiers.disk is not None
    held = [segment for sequence in sequences for segment in sequence.segments()]
    segments = [*held, *cache.tree.segments(), *(one.owner for one in held)]
    promised = [(one.reservation.used, one.reservation.outstanding) for one in sequences if one.reservation]
    return (
        {name: one["current"] for name, one in ledger.categories().items() if one["current"]},
        (ledger.current, ledger.committed, tiers.arena.used, tiers.disk.used, cache.tree.nbytes),
        [(segment.references, segment.category, segment.tier) for segment in segments],
        promised,
    )


def whole(recipes: list[str]) -> tuple[Cache, list[SequenceCache]]:
    """Sequences of several recipes, a prefix hit, a fork and a parked one on disk."""
    cache = Cache(MODEL, disk=True, reserve=1 << 26)
    sequences = [filled(cache, recipe, 150 + 10 * place) for place, recipe in enumerate(recipes)]
    sequences.append(filled(cache, "full", 150, steps=3))
    sequences.append(sequences[0].fork(cache.reserve("fork", 1 << 18)))
    Driver(MODEL).step(sequences[-1], [7])
    sequences[-2].park()
    cache.pressure(1 << 16)
    statistics = cache.create(collect=Statistics(column_sums=True))
    Driver(MODEL).prefill(statistics, prompt(128, 9))
    cache.publish(statistics, prompt(128, 9))
    return cache, [*sequences, statistics]


def test_a_recount_of_what_is_right_changes_nothing() -> None:
    cache, sequences = whole(list(RECIPES))
    assert cache.tiers.disk is not None and cache.tiers.disk.used, "something lies on disk"
    before, held = books(cache, sequences), [contents(sequence) for sequence in sequences]
    cache.recount()
    assert books(cache, sequences) == before
    for sequence, expected in zip(sequences, held, strict=True):
        for mine, theirs in zip(contents(sequence), expected, strict=True):
            assert all(
                bool((a == b).all())
                for one, two in zip(mine, theirs, strict=True)
                for a, b in zip(one, two, strict=True)
            )
    empty(cache, sequences)


def empty(cache: Cache, sequences: list[SequenceCache]) -> None:
    """Free everything; nothing is left."""
    for sequence in sequences:
        sequence.free()
    assert cache.tree is not None and cache.tiers.disk is not None
    cache.tree.clear()
    assert (cache.ledger.current, cache.ledger.committed) == (0, 0)
    assert (cache.tiers.arena.used, cache.tiers.arena.resident(), cache.tiers.disk.used) == (0, 0, 0)


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_an_interrupted_free_leaves_is_freed(monkeypatch: pytest.MonkeyPatch, recipe: str, at: int) -> None:
    cache, sequences = whole([recipe])
    calls, release = [0], Segment.release

    def interrupted(segment: Segment, count: int = 1) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        release(segment, count)

    monkeypatch.setattr(Segment, "release", interrupted)
    first = sequences.pop(0)
    with pytest.raises(KeyboardInterrupt):
        first.free()
    monkeypatch.undo()
    first.free()
    cache.recount()
    empty(cache, sequences)


def test_what_was_released_too_often_or_seldom_is_counted_again() -> None:
    cache, sequences = whole(["full"])
    before = books(cache, sequences)
    shared = next(one for one in sequences[0].segments() if one.references > 2)
    shared.references -= 2
    cache.ledger.charge("index", 100)
    cache.ledger.reserve("nobody", 5000)
    orphan = cache.tiers.allocate(2, 4096, "cache")
    assert cache.tree is not None
    cache.tree.nbytes += 7
    assert books(cache, sequences) != before
    cache.recount()
    assert books(cache, sequences) == before
    assert orphan.nbytes > 0, "a run that nobody holds was taken back"
    empty(cache, sequences)


def test_an_interrupted_eviction_leaves_no_page_that_is_half_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, sequences = whole(["full"])
    empty_tree, release = cache.tree, Segment.release
    assert empty_tree is not None
    pages = len(list(empty_tree.nodes()))
    for sequence in sequences:
        sequence.free()

    def interrupted(segment: Segment, count: int = 1) -> None:
        monkeypatch.setattr(Segment, "release", release)
        raise MemoryError

    monkeypatch.setattr(Segment, "release", interrupted)
    with pytest.raises(MemoryError):
        empty_tree.shrink(0)
    cache.recount()
    left = list(empty_tree.nodes())
    assert len(left) == pages - 1 and all(
        segment.tier == "memory" or segment.extent for segment in empty_tree.segments()
    )
    empty(cache, [])


def test_rehearsals_are_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their bytes were given back again by a second close where the first was interrupted."""
    cache = Cache(MODEL, reserve=1 << 26)
    sequence = cache.create([registry.build("cache", RECIPES["kvzip"][0])])
    tokens = prompt(150)
    driver = Driver(MODEL)
    for first in range(0, 150, 50):
        driver.step(sequence, tokens[first : first + 50])
    run = sequence.begin_rehearsals(tokens)
    assert isinstance(run, Rehearsals) and run.charged and sequence.index_bytes >= run.charged
    monkeypatch.setattr(type(cache.ledger), "credit", _raise_once(monkeypatch, type(cache.ledger)))
    with pytest.raises(KeyboardInterrupt):
        run.close()
    run.close()
    assert run.charged == 0
    cache.recount()
    sequence.free()
    assert cache.ledger.current == 0


def _raise_once(monkeypatch: pytest.MonkeyPatch, ledger: type) -> Any:
    original = ledger.credit  # type: ignore[attr-defined]

    def interrupted(*_: Any) -> None:
        monkeypatch.setattr(ledger, "credit", original)
        raise KeyboardInterrupt

    return interrupted
