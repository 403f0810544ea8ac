"""The disk tier and sizes."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from thrifty.errors import BudgetError, StorageError
from thrifty.storage.budget import format_size, parse_size
from thrifty.storage.disk import DiskTier


def test_what_is_written_comes_back_and_no_file_is_left(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path)
    pieces = [np.random.default_rng(size).integers(0, 256, size, np.uint8) for size in (1, 5000, 4096, 100_000)]
    extents = [disk.write(piece) for piece in pieces]
    for piece, extent in zip(pieces, extents, strict=True):
        into = np.zeros_like(piece)
        disk.read(extent, into)
        assert np.array_equal(into, piece)
    part = np.zeros(100, np.uint8)
    disk.read(extents[1], part, offset=4000)
    assert np.array_equal(part, pieces[1][4000:4100])
    assert list(tmp_path.iterdir()) == [], "the file has no name: a kill leaves nothing behind"
    for extent in extents:
        disk.free(extent)
    assert disk.used == 0
    disk.close()


def test_a_full_tier_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path, capacity=8192)
    kept = np.arange(200, dtype=np.uint8)
    extent = disk.write(kept)
    with pytest.raises(StorageError, match="disk tier is full: 4.096 kB of 8.192 kB"):
        disk.write(np.zeros(5000, np.uint8))
    into = np.zeros_like(kept)
    disk.read(extent, into)
    assert np.array_equal(into, kept)


def test_a_failing_write_gives_its_extent_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = DiskTier(tmp_path)

    def no_space(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", no_space)
    with pytest.raises(StorageError, match="No space left on device.*Nothing was lost"):
        disk.write(np.zeros(100, np.uint8))
    assert disk.used == 0


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        DiskTier(tmp_path / "missing")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("150MB", 150_000_000), ("1GiB", 1 << 30), ("1.5 kb", 1500), ("2_000", 2000), (7, 7), (" 3 MiB ", 3 << 20)),
        *((np.int64(5), 5), (np.uint32(9), 9), (np.array(4), 4)),
    ],
)
def test_sizes(text: int | str, count: int) -> None:
    assert parse_size(text) == count and type(parse_size(text)) is int


@pytest.mark.parametrize(
    "text", ["", "MB", "12 parsecs", "-5MB", "1.2.3GB", "9" * 400, True, 1.5, b"5MB", np.float32(5)]
)
def test_what_is_no_size_is_refused_by_name(text: object) -> None:
    with pytest.raises(BudgetError, match=r"cache = .* is not a size; write bytes or a form such as '150MB'"):
        parse_size(text, "cache")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -1, "0", "0.4"])
def test_sizes_are_positive(size: int | str) -> None:
    with pytest.raises(BudgetError, match="is not positive"):
        parse_size(size)


def test_sizes_for_people() -> None:
    assert [format_size(size) for size in (12, 1500, 150_000_000, 2 * 10**9)] == [
        "12 bytes",
        "1.5 kB",
        "150 MB",
        "2 GB",
    ]


def test_what_lies_on_a_closed_tier_is_given_back_without_an_error(tmp_path: Path) -> None:
    """Sequences that outlive their engine free what they hold when they are collected."""
    disk = DiskTier(tmp_path)
    extent = disk.write(np.arange(5000, dtype=np.uint8))
    disk.close()
    disk.free(extent)
    assert disk.used == 0


def test_one_descriptor_until_another_reads_and_none_of_a_tier_that_was_dropped(tmp_path: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    tier = DiskTier(tmp_path)
    assert opened() == before + 1 and not tier.direct, "an engine that streams nothing has one"
    assert tier.descriptor == tier.descriptor
    assert opened() == before + 1 + tier.direct
    with pytest.warns(ResourceWarning):
        del tier
        gc.collect()
    assert opened() == before
