"""Reservations follow the budget and what the system grants."""

from __future__ import annotations

import mmap
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from thrifty.errors import StorageError
from thrifty.storage import address_space, arena, mapping
from thrifty.storage.arena import Arena
from thrifty.storage.ledger import Ledger
from thrifty.storage.mapping import Mapping

MEGABYTE = 1 << 20
GIGABYTE = 1 << 30


def leave(monkeypatch: pytest.MonkeyPatch, nbytes: int | None) -> None:
    monkeypatch.setattr(mapping, "granted", lambda: nbytes)


def refuse(monkeypatch: pytest.MonkeyPatch, above: int) -> None:
    """A system that counts what is reserved, and says no to what exceeds `above`."""
    original = mapping._map
    monkeypatch.setattr(mapping, "_map", lambda nbytes: original(nbytes) if nbytes <= above else None)


def test_without_limits_the_reservation_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, None)
    assert Mapping(GIGABYTE, MEGABYTE).nbytes == GIGABYTE


@pytest.mark.parametrize(("left", "needed", "expected"), [(400, 1, 100), (400, 150, 150), (16384, 1, 1024)])
def test_under_a_limit_it_takes_a_share_or_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, left: int, needed: int, expected: int
) -> None:
    leave(monkeypatch, left * MEGABYTE)
    assert Mapping(GIGABYTE, needed * MEGABYTE).nbytes == expected * MEGABYTE


@pytest.mark.parametrize(("grants", "needed", "expected"), [(300, 1, 64), (300, 100, 100), (100, 90, 90)])
def test_what_is_refused_is_halved_down_to_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, grants: int, needed: int, expected: int
) -> None:
    leave(monkeypatch, None)
    refuse(monkeypatch, grants * MEGABYTE)
    assert Mapping(GIGABYTE, needed * MEGABYTE).nbytes == expected * MEGABYTE


def test_a_budget_that_cannot_be_reserved_is_refused_with_one_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, 200 * 10**6)
    refuse(monkeypatch, 200 * 10**6)
    expected = (
        r"cannot reserve 300 MB of address space for the cache: `ulimit -v` leaves 200 MB\. "
        r"Give a memory budget of at most 100 MB \(`--memory`\), or raise `ulimit -v`"
    )
    with pytest.raises(StorageError, match=expected):
        Arena(Ledger(300 * 10**6))


def test_a_budget_beyond_the_machine_names_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, None)
    refuse(monkeypatch, 10**9)
    monkeypatch.setattr(mapping, "machine_memory", lambda: 8 * 10**9)
    with pytest.raises(StorageError) as refused:
        Arena(Ledger(10**14))
    assert str(refused.value) == (
        "cannot reserve 100 TB of address space for the cache: this machine has 8 GB of memory. Give a memory budget "
        "(`--memory`, `--process-memory`) of at most that, or leave it out"
    )
    with pytest.raises(StorageError, match=r"2 GB .*: the system refuses it\. Give a smaller memory budget"):
        Arena(Ledger(2 * 10**9))


def test_the_arena_follows_the_budget_without_what_others_take(monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, None)
    assert Arena(Ledger(100 * MEGABYTE), outside=60 * MEGABYTE)._mapping.nbytes == 16 * 40 * MEGABYTE
    assert Arena(Ledger(100 * GIGABYTE))._mapping.nbytes > arena.DEFAULT_RESERVE
    refuse(monkeypatch, 50 * MEGABYTE)
    assert Arena(Ledger(100 * MEGABYTE), outside=60 * MEGABYTE)._mapping.nbytes == 40 * MEGABYTE


def test_pages_are_plain_ranges_where_no_stripes_can_be_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, None)
    small = Arena(Ledger(40 * MEGABYTE))
    refuse(monkeypatch, MEGABYTE)
    run = small.allocate(2 * small.page, "cache", pieces=4, striped=True)
    assert run.stripes is None and run.pieces.strides[0] == 2 * small.page
    run.pieces.fill(3)
    assert small.resident() == run.nbytes
    with small.together():
        small.free(run)
    assert small.used == 0 and small.resident() == 0


@pytest.mark.parametrize(("kind", "place"), [(resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)])
def test_what_is_granted_is_the_limit_without_what_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: int, place: int
) -> None:
    def limit(asked: int) -> tuple[int, int]:
        return (10**12, -1) if asked == kind else (-1, -1)

    used = [0] * 7
    used[place] = 1000
    (tmp_path / "statm").write_text(" ".join(map(str, used)))
    monkeypatch.setattr(address_space, "_STATM", tmp_path / "statm")
    monkeypatch.setattr(address_space.resource, "getrlimit", limit)
    assert address_space.granted() == 10**12 - 1000 * mmap.PAGESIZE
    monkeypatch.setattr(address_space.resource, "getrlimit", lambda kind: (-1, -1))
    assert address_space.granted() is None


@pytest.mark.long
def test_the_engine_answers_under_a_limit_of_the_shell() -> None:
    """Two engines beside each other, with and without a budget, and real limits."""
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (3_000_000_000, -1))\n"
        "from tests.tiny import tiny_model\n"
        "from thrifty import Thrifty\n"
        "models = [Thrifty(tiny_model(packed=True), memory=memory) for memory in (None, '60MB', None)]\n"
        "texts = {model.generate('a b', max_tokens=4, greedy=True).text for model in models}\n"
        "assert len(texts) == 1, texts\n"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
