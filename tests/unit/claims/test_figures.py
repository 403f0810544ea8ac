"""Figures in tables of the docs come from records: a table below `<!-- figures: FILE.json -->` has no other numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
MARK = re.compile(r"<!-- figures: (?P<file>\S+\.jsonl?) -->")
NUMBER = re.compile(r"(?<![\w.,:/-])[+−-]?\d[\d,]*(?:\.\d+)?(?![\w])")
PAGES = ("docs/claims.md",)  # each has a mark; a page that gets one is added here
SCALES = (1.0, 100.0, 1e-3, 1e-6, 1e-9)
"""A record's number is written as it is, as a percentage, or in thousands, mega and giga."""


def marked(page: Path) -> Iterator[tuple[Path, list[str]]]:
    """(the record, the rows below the head) of every marked table."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for place, line in enumerate(lines):
        mark = MARK.search(line)
        if mark is None:
            continue
        rest = lines[place + 1 :]
        begin = next((number for number, text in enumerate(rest) if text.startswith("|")), len(rest))
        rows = []
        for text in rest[begin:]:
            if not text.startswith("|"):
                break
            rows.append(text)
        yield page.parent / mark["file"], rows[2:]


def numbers(value: Any) -> Iterator[float]:
    """All numbers of a JSON document, those in its texts too."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, str):
        yield from (_read(text) for text in NUMBER.findall(value))
    else:
        for member in value.values() if isinstance(value, dict) else value:
            yield from numbers(member)


def strange(rows: list[str], known: set[float]) -> list[str]:
    """The numbers of a table's rows that are no number of the record, rounded as they are written. First cells are
    names.
    """
    return [
        text for row in rows for cell in row.split("|")[2:] for text in NUMBER.findall(cell) if not _is(text, known)
    ]


def record(path: Path) -> set[float]:
    """The numbers of a JSON file or of one document a line."""
    text = path.read_text(encoding="utf-8")
    documents = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    return set(numbers(documents))


def _is(text: str, known: set[float]) -> bool:
    places = len(text.partition(".")[2])
    wanted = abs(_read(text))
    return any(abs(round(abs(number) * scale, places) - wanted) < 1e-9 for number in known for scale in SCALES)


def _read(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


@pytest.mark.parametrize("name", PAGES)
def test_figures_of_marked_tables_are_in_their_record(name: str) -> None:
    tables = list(marked(ROOT / name))
    assert tables, f"{name} has no marked table"
    for path, rows in tables:
        assert rows, f"{name}: no table follows the mark of {path.name}"
        assert not strange(rows, record(path)), f"{name}: figures that {path.name} does not have"


def test_a_figure_that_is_not_in_the_record_is_seen(tmp_path: Path) -> None:
    (tmp_path / "claims.json").write_text(json.dumps({"a": 0.9731, "bytes": 31_200_000, "text": "12 of 100 keys"}))
    page = tmp_path / "page.md"
    table = "<!-- figures: claims.json -->\n\n| `kivi` 2 | kept | MB |\n|---|---|---|\n"
    page.write_text(table + "| `kivi` 2 | 97.3 % of 12 | 31 |\n| x | 0.973 | 31.2 |\n\n98.0 outside")
    ((path, rows),) = marked(page)
    assert strange(rows, record(path)) == []
    page.write_text(table + "| `kivi` 2 | 97.4 % | 31 |\n| x | 0.97 | 32 |\n")
    ((path, rows),) = marked(page)
    assert strange(rows, record(path)) == ["97.4", "32"]
