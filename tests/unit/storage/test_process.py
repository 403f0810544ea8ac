"""The process as the system counts it."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from thrifty.storage import process
from thrifty.storage.process import resident_of

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
