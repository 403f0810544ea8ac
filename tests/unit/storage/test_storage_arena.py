"""Arena, extents and ledger: bytes are counted once and really given back."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.process_memory import process_memory

from thrifty.errors import BudgetError, StorageError
from thrifty.storage.arena import Arena, Run
from thrifty.storage.extents import Extents
from thrifty.storage.ledger import Ledger
from thrifty.storage.stale import Stale

MEGABYTE = 1 << 20


def address(run: Run, piece: int = 0) -> int:
    """Memory address of a piece."""
    return run.pieces[piece].ctypes.data


def test_runs_are_page_aligned_zeroed_and_apart() -> None:
    arena = Arena(Ledger(), reserve=MEGABYTE)
    first, second = arena.allocate(10, "cache"), arena.allocate(5000, "cache")
    assert address(first) % arena.page == 0 and first.nbytes == arena.page and second.nbytes == 2 * arena.page
    assert not first.pieces[0].any()
    first.pieces[0].fill(7)
    assert not second.pieces[0].any()
    arena.free(first)
    again = arena.allocate(10, "cache")
    assert address(again) == address(first) and not again.pieces[0].any(), "a freed page comes back as zeros"


def test_resident_memory_follows_the_ledger_within_two_percent() -> None:
    ledger = Ledger()
    arena = Arena(ledger, reserve=256 * MEGABYTE)
    choose = random.Random(0)
    runs = []
    for _ in range(400):
        if runs and choose.random() < 0.4:
            arena.free(runs.pop(choose.randrange(len(runs))))
        else:
            run = arena.allocate(choose.randrange(1, 300_000), "cache")
            run.pieces[0].fill(1)
            runs.append(run)
    assert arena.used == ledger.current
    assert abs(arena.resident() - ledger.current) <= 0.02 * ledger.current
    for run in runs:
        arena.free(run)
    assert ledger.current == 0 and arena.used == 0 and arena.resident() == 0


def test_process_memory_falls_with_the_ledger() -> None:
    ledger = Ledger()
    arena = Arena(ledger)
    before = process_memory()
    runs = [arena.allocate(25 * MEGABYTE, "cache") for _ in range(10)]
    assert process_memory() - before < 10 * MEGABYTE, "what was not written takes no memory"
    for run in runs:
        run.pieces[0].fill(1)
    held = process_memory() - before
    assert abs(held - ledger.current) < 0.05 * ledger.current
    for run in runs[::2]:
        arena.free(run)
    assert abs(process_memory() - before - ledger.current) < 15 * MEGABYTE
    for run in runs[1::2]:
        arena.free(run)
    assert process_memory() - before < 15 * MEGABYTE


def test_striped_runs_lie_side_by_side_piece_by_piece() -> None:
    ledger = Ledger()
    arena = Arena(ledger, reserve=64 * MEGABYTE)
    size = 2 * arena.page
    runs = [arena.allocate(size, "cache", pieces=6, striped=True) for _ in range(5)]
    for before, after in itertools.pairwise(runs):
        assert [address(after, piece) - address(before, piece) for piece in range(6)] == [size] * 6
    for number, run in enumerate(runs):
        assert run.pieces.shape == (6, size) and not run.pieces.any()
        run.pieces.fill(number + 1)
    assert all(bool((run.pieces == number + 1).all()) for number, run in enumerate(runs)), "runs do not overlap"
    assert arena.used == ledger.current == arena.resident() == 5 * 6 * size
    arena.free(runs.pop(2))
    assert arena.used == ledger.current == arena.resident() == 4 * 6 * size
    again = arena.allocate(size, "cache", pieces=6, striped=True)
    assert address(again) == address(runs[1]) + size and not again.pieces.any(), "a freed slot comes back as zeros"


def test_runs_freed_together_go_back_at_the_end_and_are_free_again() -> None:
    ledger = Ledger()
    arena = Arena(ledger, reserve=64 * MEGABYTE)
    runs = [arena.allocate(arena.page, "cache", pieces=4, striped=True) for _ in range(9)]
    for run in runs:
        run.pieces.fill(1)
    addresses = [address(run) for run in runs]
    with arena.together():
        for index in (7, 2, 3, 5, 8):
            arena.free(runs[index])
        assert ledger.current == arena.used == 4 * 4 * arena.page
        with pytest.raises(ValueError, match="stop"), arena.together():
            raise ValueError("stop")
        assert address(arena.allocate(arena.page, "cache", pieces=4, striped=True)) > addresses[-1], "not yet zeroed"
    assert arena.resident() == 4 * 4 * arena.page
    again = [arena.allocate(arena.page, "cache", pieces=4, striped=True) for _ in range(5)]
    assert {address(run) for run in again} == {addresses[index] for index in (2, 3, 5, 7, 8)}
    assert not any(bool(run.pieces.any()) for run in again)


def test_pieces_that_are_no_whole_pages_lie_back_to_back() -> None:
    arena = Arena(Ledger(), reserve=MEGABYTE)
    run = arena.allocate(100, "cache", pieces=6, striped=True)
    assert run.pieces.shape == (6, 100) and address(run, 5) == address(run) + 500 and run.nbytes == arena.page
    arena.free(run)
    assert arena.used == 0


def test_stripes_and_runs_share_the_bound() -> None:
    ledger = Ledger()
    arena = Arena(ledger, reserve=MEGABYTE)
    held = [arena.allocate(arena.page, "cache", pieces=16, striped=True) for _ in range(10)]
    arena.allocate(6 * 16 * arena.page, "cache")
    with pytest.raises(StorageError, match="largest that fits is 0 bytes"):
        arena.allocate(arena.page, "cache", pieces=16, striped=True)
    assert ledger.current == MEGABYTE
    arena.free(held.pop())
    arena.allocate(arena.page, "cache", pieces=16, striped=True)


def test_free_ranges_join_again() -> None:
    extents = Extents(1 << 16, 1 << 12)
    choose = random.Random(1)
    held: list[tuple[int, int]] = []
    for _ in range(2000):
        size = choose.randrange(1, 20_000)
        start = extents.take(size) if choose.random() < 0.6 else None
        if start is not None:
            assert all(start + extents.rounded(size) <= at or at + extents.rounded(n) <= start for at, n in held)
            held.append((start, size))
        elif held:
            extents.give(*held.pop(choose.randrange(len(held))))
    for start, size in held:
        extents.give(start, size)
    assert extents.used == 0 and extents.largest == extents.size


def test_a_range_given_back_twice_is_an_error() -> None:
    extents = Extents(1 << 16, 1 << 12)
    start = extents.take(100)
    assert start is not None
    extents.give(start, 100)
    with pytest.raises(StorageError, match="twice"):
        extents.give(start, 100)


def test_the_budget_refuses_with_what_would_fit() -> None:
    ledger = Ledger(100_000)
    arena = Arena(ledger, reserve=MEGABYTE)
    arena.allocate(50_000, "cache")
    with pytest.raises(BudgetError, match=r"at most 46.75 kB would fit; a budget of 114688 bytes"):
        arena.allocate(60_000, "cache")
    assert arena.used == ledger.current == 53_248


def test_a_full_address_space_names_the_largest_range() -> None:
    ledger = Ledger()
    arena = Arena(ledger, reserve=MEGABYTE)
    with pytest.raises(StorageError, match=r"largest that fits is 1.049 MB"):
        arena.allocate(2 * MEGABYTE, "cache")
    assert ledger.current == 0


def test_reservations_hold_room_for_their_owner() -> None:
    ledger = Ledger(1000)
    promise = ledger.reserve("request 1", 600)
    assert ledger.available == 400
    with pytest.raises(BudgetError, match="400 bytes would fit"):
        ledger.reserve("request 2", 500)
    with pytest.raises(BudgetError):
        ledger.charge("cache", 500)
    ledger.charge("cache", 500, promise)
    assert ledger.available == 400 and promise.outstanding == 100
    ledger.credit("cache", 200, promise)
    assert promise.outstanding == 300
    promise.suspend()
    assert ledger.available == 700
    ledger.charge("tree", 500)
    with pytest.raises(BudgetError):
        promise.resume()
    ledger.credit("tree", 500)
    promise.resume()
    assert ledger.available == 400
    promise.release()
    promise.release()
    assert ledger.committed == 300


def test_categories_peak_and_steady() -> None:
    ledger = Ledger()
    ledger.charge("cache", 100)
    ledger.charge("scratch", 50)
    ledger.credit("scratch", 50)
    ledger.charge("workspace", 20)
    assert (ledger.current, ledger.peak, ledger.steady) == (120, 150, 100)
    ledger.recategorise("cache", "tree", 60)
    assert ledger.categories()["tree"] == {"current": 60, "peak": 60} and ledger.bytes_of("cache") == 40
    ledger.reset_peak()
    assert ledger.peak == 120
    with pytest.raises(BudgetError, match="holds 40 bytes of cache; 41 were given back"):
        ledger.credit("cache", 41)


def test_runs_share_memory_with_native_addresses() -> None:
    import ctypes

    arena = Arena(Ledger(), reserve=MEGABYTE)
    run = arena.allocate(64, "cache")
    ctypes.memset(address(run), 5, 64)
    assert bool((run.pieces[0][:64] == 5).all())


def test_an_owners_own_bound_is_never_exceeded() -> None:
    ledger = Ledger(budget=1000)
    promise = ledger.reserve("request 1", 300, limit=400)
    ledger.charge("cache", 350, promise)
    for refused in (
        lambda: ledger.charge("cache", 51, promise),
        lambda: promise.resize(401),
        lambda: ledger.reserve("request 2", 500, limit=499),
    ):
        with pytest.raises(BudgetError, match=r"exceed its own bound of .* give it a bound of \d+ bytes or more"):
            refused()
    assert (ledger.current, promise.used, promise.nbytes) == (350, 350, 300)
    ledger.credit("cache", 200, promise)
    ledger.charge("cache", 100, promise)
    assert (promise.used, promise.peak) == (250, 350)


def test_what_is_taken_while_runs_are_freed_together_finds_their_memory_and_reads_as_zeros() -> None:
    ledger = Ledger()
    arena = Arena(ledger, reserve=MEGABYTE)
    first = arena.allocate(40_000, "cache")
    other = arena.allocate(8_192, "cache")
    for run in (first, other):
        run.pieces.fill(7)
    held = arena.resident()
    with arena.together():
        arena.free(first)
        assert ledger.current == other.nbytes and arena.resident() == held
        part = arena.allocate(12_288, "cache")
        assert address(part) == address(first) and not part.pieces.any()
        part.pieces.fill(9)
        arena.free(other)
    assert arena.resident() == ledger.current == part.nbytes and bool((part.pieces == 9).all())
    assert not arena.allocate(40_000, "cache").pieces.any()


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8), st.booleans()), max_size=30),
)
def test_stale_ranges_are_what_was_added_and_not_taken(steps: list[tuple[int, int, bool]]) -> None:
    stale, expected = Stale(), set[int]()
    for start, length, adds in steps:
        places = set(range(start, start + length))
        if adds and not places & expected:
            stale.add(start, length)
            expected |= places
        elif not adds:
            assert stale.take(start, length) == bool(places & expected)
            expected -= places
    ranges = list(stale.drain())
    assert {place for start, length in ranges for place in range(start, start + length)} == expected
    assert all(start + length < after for (start, length), (after, _) in itertools.pairwise(ranges)), "joined"
    assert not list(stale.drain())
