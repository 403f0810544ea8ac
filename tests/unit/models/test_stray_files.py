"""What lies among converted copies and is none is listed, and can be removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from thrifty.errors import CheckpointError
from thrifty.models.store import cache_directory, converted, copies


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache_directory.VARIABLE, str(tmp_path))
    folder = tmp_path / converted.KIND
    folder.mkdir(parents=True)
    return folder


def test_strays_are_listed_and_removed(root: Path) -> None:
    entry = root / f"{'a' * 32}-{converted.FORMAT}"
    entry.mkdir()
    (entry / "weights").write_bytes(b"12345")
    (root / "notes.txt").write_bytes(b"123")
    aside = root / f".{'b' * 32}-{converted.FORMAT}.old"
    (aside / "inside").mkdir(parents=True)
    (aside / "inside" / "file").write_bytes(b"12")
    (root / f".{'c' * 32}-{converted.FORMAT}.lock").touch()
    listed = {copy.path: (copy.nbytes, copy.fault) for copy in copies.copies()}
    assert listed.pop(entry)[0] == 5
    assert listed == {
        root / "notes.txt": (3, "no copy: nothing uses it"),
        aside: (2, "left behind: its copy was made anew"),
    }
    for copy in copies.matching("unusable"):
        copies.remove(copy)
    assert [path.name for path in root.iterdir() if not path.name.endswith(".lock")] == []


def test_what_is_being_replaced_is_no_stray(root: Path) -> None:
    final = root / f"{'b' * 32}-{converted.FORMAT}"
    (root / f".{final.name}.old").mkdir()
    with cache_directory.locked(root / f".{final.name}.lock"):
        assert copies.copies() == []
    assert len(copies.copies()) == 1


def test_a_stray_is_no_name_of_a_copy(root: Path) -> None:
    (root / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="names no converted copy"):
        copies.matching("other")
    assert [copy.path for copy in copies.matching(str(root / "notes.txt"))] == [root / "notes.txt"]
