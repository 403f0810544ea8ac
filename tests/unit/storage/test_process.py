"""The process as the system counts it."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from thrifty.storage import process
from thrifty.storage.process import let_go, resident_of

PAGE = mmap.PAGESIZE
needs_pages = pytest.mark.skipif(not process.PAGES.exists(), reason="the system does not tell of pages")


def untouched(pages: int) -> np.ndarray:
    mapped = mmap.mmap(-1, pages * PAGE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        mapped.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(mapped, np.uint8)


@needs_pages
def test_only_what_was_touched_counts_and_once() -> None:
    memory = untouched(64)
    assert resident_of([memory]) == 0
    memory[: 16 * PAGE] = 1
    assert resident_of([memory]) == 16 * PAGE
    assert resident_of([memory[: 10 * PAGE], memory[5 * PAGE :], memory[100:200]]) == 16 * PAGE
    assert resident_of([memory[16 * PAGE :], memory[:0]]) == 0


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "PAGES", tmp_path / "none")
    assert resident_of([np.ones(1 << 16)]) == 0


def test_pages_of_a_file_leave_the_process_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 4096)
    with path.open("rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    assert int(mapped.sum(dtype=np.int64)) == 4096 * 255 * 128
    held = resident_of([mapped])
    if not held:
        pytest.skip("this system does not tell which pages are in memory")
    assert held == 1 << 20
    halves = mapped[: 1 << 19], mapped[1 << 19 :]
    assert let_go(halves) == 1 << 20 and resident_of([mapped]) == 0
    assert int(mapped.sum(dtype=np.int64)) == 4096 * 255 * 128


def test_what_is_of_no_file_or_was_written_to_stays(tmp_path: Path) -> None:
    own = np.ones(1 << 20, np.uint8)
    assert let_go([own]) == 0 and int(own.sum(dtype=np.int64)) == 1 << 20
    path = tmp_path / "weights"
    path.write_bytes(bytes(4 * mmap.PAGESIZE))
    with path.open("rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    mapped[mmap.PAGESIZE] = 7  # one page is this process's own now
    mapped.sum()
    assert let_go([mapped]) in (0, 3 * mmap.PAGESIZE)
    assert mapped[mmap.PAGESIZE] == 7
