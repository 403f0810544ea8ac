"""Errors in the middle of giving back: what is free is counted once, reads as zeros, and goes back the next time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thrifty.errors import StorageError
from thrifty.storage.arena import Arena, Run
from thrifty.storage.disk import DiskTier
from thrifty.storage.extents import Extents
from thrifty.storage.ledger import Ledger
from thrifty.storage.mapping import Mapping
from thrifty.storage.stale import Stale

MEGABYTE = 1 << 20
ERRORS = (KeyboardInterrupt, MemoryError, OSError)


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: type[BaseException], at: int = 1) -> None:
    calls, original = [0], getattr(owner, name)

    def failing(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise error
        return original(*arguments)

    monkeypatch.setattr(owner, name, failing)


def filled(arena: Arena, nbytes: int, pieces: int = 1, striped: bool = False) -> Run:
    run = arena.allocate(nbytes, "cache", pieces=pieces, striped=striped)
    run.pieces.fill(7)
    return run


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("striped", [False, True], ids=["runs", "stripes"])
@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_pages_that_did_not_go_back_go_the_next_time(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], striped: bool, together: bool, at: int
) -> None:
    ledger = Ledger()
    arena = Arena(ledger, reserve=MEGABYTE)
    runs = [filled(arena, 4096, 2, striped) for _ in range(6)]
    fail_once(monkeypatch, Mapping, "give_back", error, at)
    gone = runs[:4:2] + runs[5:]

    def free() -> None:
        for run in gone[: 3 if together else 1]:
            gone.remove(run)
            arena.free(run)

    try:
        if together:
            with arena.together():
                free()
        else:
            while gone:
                free()
    except error:
        pass
    for run in gone:
        arena.free(run)
    assert arena.used == ledger.current == sum(run.nbytes for run in (runs[1], runs[3], runs[4]))
    again = [arena.allocate(4096, "cache", pieces=2, striped=striped) for _ in range(3)]
    assert not any(bool(run.pieces.any()) for run in again), "what is taken anew reads as zeros"
    assert all(bool((run.pieces == 7).all()) for run in (runs[1], runs[3], runs[4]))
    for run in (*again, runs[1], runs[3], runs[4]):
        arena.free(run)
    assert arena.used == ledger.current == arena.resident() == 0


def test_an_arena_is_made_anew_from_the_runs_in_use() -> None:
    arena = Arena(Ledger(), reserve=MEGABYTE)
    plain = [filled(arena, 5000) for _ in range(5)]
    striped = [filled(arena, 4096, 3, striped=True) for _ in range(5)]
    arena.free(plain[0])
    held = [plain[1], plain[4], striped[0], striped[3]]
    arena.reclaim(held)
    assert arena.used == arena.resident() == sum(run.nbytes for run in held)
    assert all(bool((run.pieces == 7).all()) for run in held)
    new = [filled(arena, 5000) for _ in range(4)] + [filled(arena, 4096, 3, striped=True) for _ in range(4)]
    assert len({run.pieces.ctypes.data for run in (*held, *new)}) == len(held) + len(new)
    for run in (*held, *new):
        arena.free(run)
    assert arena.used == 0


def test_extents_begin_with_what_is_taken() -> None:
    extents = Extents(1 << 16, 1 << 12, [(1 << 14, 5000), (0, 1 << 12), ((1 << 16) - 4096, 10)])
    assert extents.used == 4096 * 4
    assert extents.free() == [(4096, 12288), (24576, 36864)]
    extents.give(1 << 14, 5000)
    extents.give(0, 1 << 12)
    assert extents.largest == (1 << 16) - 4096
    with pytest.raises(StorageError, match="was handed out twice"):
        Extents(1 << 16, 1 << 12, [(0, 5000), (4096, 100)])


def test_stale_ranges_stay_where_the_loop_ends_early() -> None:
    stale = Stale()
    for start in (0, 10, 20):
        stale.add(start, 5)
    for start, _ in stale.drain():
        if start == 10:
            break
    assert list(stale.drain()) == [(10, 5), (20, 5)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_write_that_was_interrupted_takes_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    disk = DiskTier(tmp_path)
    fail_once(monkeypatch, DiskTier, "_write_all", error)
    with pytest.raises(error):
        disk.write(np.ones(5000, np.uint8))
    assert disk.used == 0


def test_a_disk_tier_is_made_anew_from_the_extents_in_use(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path)
    data = [np.full(5000, number, np.uint8) for number in range(3)]
    extents = [disk.write(one) for one in data]
    disk.reclaim(extents[1:2])
    assert disk.used == 8192
    other = disk.write(data[2])
    found = np.empty(5000, np.uint8)
    for extent, expected in ((extents[1], data[1]), (other, data[2])):
        disk.read(extent, found)
        assert np.array_equal(found, expected)


def test_a_ledger_is_set_right() -> None:
    ledger = Ledger(budget=1000)
    ledger.charge("weights", 100)
    mine, lost = ledger.reserve("request 1", 300), ledger.reserve("request 2", 200)
    ledger.charge("cache", 120, mine)
    ledger.charge("index", 50)
    ledger.restate({"cache": 80, "index": 0}, {mine: 80, lost: 0}, {mine})
    assert (ledger.current, ledger.bytes_of("cache"), ledger.bytes_of("index")) == (180, 80, 0)
    assert (mine.used, mine.outstanding) == (80, 220)
    assert ledger.committed == 400, "a promise to nobody ends"
    lost.release()
    assert ledger.committed == 400
