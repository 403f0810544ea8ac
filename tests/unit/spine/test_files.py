"""Files that are replaced whole, numbers found by halving, and how long a source file may be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty import files
from thrifty.bisection import largest
from thrifty.files import replace_file


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    replace_file(path, "the first ü")
    replace_file(path, b"the second")
    assert path.read_bytes() == b"the second" and path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    replace_file(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, "new")
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@given(low=st.integers(0, 50), count=st.integers(0, 50), limit=st.integers(-10, 120))
def test_the_largest_is_that_of_asking_all(low: int, count: int, limit: int) -> None:
    asked: list[int] = []

    def holds(number: int) -> bool:
        asked.append(number)
        return number <= limit

    expected = max([low, *(number for number in range(low, low + count + 1) if number <= limit)])
    assert largest(low, low + count, holds) == expected
    assert low not in asked and len(asked) <= 6


def test_no_source_file_is_longer_than_350_lines() -> None:
    package = Path(files.__file__).parent
    sources = [path for kind in ("py", "cpp", "hpp") for path in package.rglob(f"*.{kind}")]
    lengths = {str(path.relative_to(package)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources}
    assert len(lengths) > 100 and {name: lines for name, lines in lengths.items() if lines > 350} == {}
