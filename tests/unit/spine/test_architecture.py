"""The docs against the package: its rooms, the files that a newcomer is sent to, the extras."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "src" / "thrifty"
NATIVE = PACKAGE / "kernels" / "native" / "src"
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading, its two head lines left out."""
    table = re.search(r"^\|.*?(?=\n\n)", TEXT[TEXT.index(heading) :], re.DOTALL | re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table[0].splitlines()[2:]]


def test_every_room_stands_in_the_table_and_has_its_sentence() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    told = {name for row in rows("## The rooms") for name in re.findall(r"`([a-z]+)/`", row[0])}
    said = set(re.findall(r"^- \*\*([a-z]+)\*\*", TEXT, re.MULTILINE))
    assert told == folders and folders <= said


def test_the_contract_has_every_room() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    rooms = {name.strip() for layer in contracts[0]["layers"] for name in layer.split("|")}
    names = {path.parent.name if path.name == "__init__.py" else path.stem for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert rooms == {f"thrifty.{name}" for name in names | modules}


def test_a_newcomer_is_sent_to_files_that_are_there() -> None:
    places = [
        place for row in rows("## Where do I go to") for cell in row[1:3] for place in re.findall(r"`([^` ]+)`", cell)
    ]
    files = [place for place in places if "/" in place and "NAME" not in place]
    assert len(files) > 25
    assert [place for place in files if not any((base / place).exists() for base in (PACKAGE, NATIVE))] == []


def test_every_extra_stands_in_the_docs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    told = re.findall(r"^\| `([a-z]+)` \|", (ROOT / "docs" / "install.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(extras)
