"""What a row is a result of: the commit and whether it was changed, the source, a technique with its claim."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from thrifty import registry
from thrifty.claims.harness import versions
from thrifty.version import VERSION


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package under version control."""
    folder = tmp_path / "src" / "package"
    folder.mkdir(parents=True)
    (folder / "version.py").write_text("VERSION = '1'\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return folder


def test_a_package_in_its_repository_has_its_commit(package: Path) -> None:
    state = versions.commit(package)
    assert git(package, "rev-parse", "HEAD").startswith(state.name) and not state.dirty
    (package.parent / "beside.txt").write_text("outside the package")
    assert not versions.commit(package).dirty
    (package / "version.py").write_text("VERSION = '2'\n")
    assert versions.commit(package).dirty


def test_an_installed_package_has_its_version(package: Path, tmp_path: Path) -> None:
    installed = package.parent / "site-packages" / "thrifty"
    installed.mkdir(parents=True)
    (installed / "version.py").write_text("")
    assert versions.commit(installed) == versions.Commit(VERSION, False), "a repository that it only lies in"


def test_the_source_changes_with_any_file_of_code_or_data(package: Path) -> None:
    first = versions.source.__wrapped__(package)
    (package / "notes.md").write_text("no code")
    assert versions.source.__wrapped__(package) == first
    (package / "data.toml").write_text("a = 1")
    second = versions.source.__wrapped__(package)
    (package / "data.toml").rename(package / "other.toml")
    assert len({first, second, versions.source.__wrapped__(package)}) == 3


def test_a_technique_changes_with_its_file_its_defaults_and_its_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("snapkv", "kivi", "scbench", "rtn")
    assert len({versions.code(name) for name in names}) == len(names)
    before = versions.code("snapkv")
    assert versions.code("snapkv") == before
    describe = registry.describe
    monkeypatch.setattr(registry, "describe", lambda stage, name: describe(stage, name) | {"options": {"window": 1}})
    assert versions.code("snapkv") != before
    monkeypatch.undo()
    monkeypatch.setattr(versions, "_read", lambda module: b"another claim")
    assert versions.code("snapkv") != before


def test_what_stands_beside_changes_with_a_rival_and_with_what_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = ["[]", "[{'technique': 'ada-kv', 'keep': 0.2}]", "[{'technique': 'snapkv', 'keep': 0.2}]"]
    before = versions.beside(tables)
    assert versions.beside(tables) == before != versions.beside(tables[:2])
    describe = registry.describe
    changed = {"snapkv": {"options": {"group": "max"}}}
    monkeypatch.setattr(registry, "describe", lambda stage, name: describe(stage, name) | changed.get(name, {}))
    assert versions.beside(tables) != before and versions.beside(tables[:2]) == versions.beside(tables[:2])
    monkeypatch.undo()
    monkeypatch.setattr(versions, "MEASURING", versions.MEASURING[1:])
    assert versions.beside(tables) != before
    assert all((versions.PACKAGE / name).is_file() for name in versions.MEASURING)
