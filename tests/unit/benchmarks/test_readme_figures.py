"""README's tables of cache techniques are lines of docs/kv-cache.md, and a row's figures are one model's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "kv-cache.md").read_text(encoding="utf-8")
SHARE = "0.25"
MODELS = {"cache, MB of 140": "smollm2-135m", "cache, MB of 8.7": "recall-2m"}

Row = dict[str, str]


def tables(text: str, first: str) -> list[list[Row]]:
    """The tables whose first column has this head: a dictionary a line, by the heads."""
    found: list[list[Row]] = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.strip().splitlines()]
        if lines[0][0] == first:
            found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


def of_model(name: str) -> list[Row]:
    """The page's rows of one model."""
    part = next(part for part in PAGE.split("\n## ") if part.startswith(f"{name}\n"))
    (rows,) = tables(part, "technique")
    return rows


def measured(model: str, technique: str, budget: str, engine: str) -> Row:
    """The engine's row that was measured whole, rows that are set like the other engine's left out."""
    rows = [row for row in of_model(model) if (row["technique"], row["budget"]) == (technique, budget)]
    own = [row for row in rows if row["engine"].startswith(engine) and "set alike" not in row["engine"]]
    (row,) = [row for row in own if row["decode tok/s"] != "–"]
    return row


def megabytes(row: Row) -> float:
    return float(row["cache"].split()[0])


def rows() -> list[tuple[str, Row]]:
    listed = [table for table in tables(README, "cache") if "over several turns" in table[0]]
    named = [(next(head for head in table[0] if head in MODELS), table) for table in listed]
    return [(head, row) for head, table in named for row in table]


@pytest.mark.parametrize(("head", "row"), [pytest.param(*one, id=f"{one[0]} {one[1]['cache']}") for one in rows()])
def test_a_row_of_the_readme_is_a_row_of_the_page(head: str, row: Row) -> None:
    technique, _, bits = row["cache"].partition(" (")[0].replace("`", "").partition(" ")
    budget = bits or ("–" if technique == "full" else SHARE)
    ours = measured(MODELS[head], technique, budget, "Thrifty")
    assert (row["recall of one key"], row["over several turns"]) == (ours["recall"], ours["multi-turn"])
    assert float(row[head]) == pytest.approx(megabytes(ours), abs=0.51 if head.endswith("140") else 0.001)
    if "decode tok/s" in row:
        assert float(row["decode tok/s"]) == pytest.approx(float(ours["decode tok/s"]), abs=0.51)
    theirs = next(value for name, value in row.items() if name.startswith("kvpress"))
    numbers = re.findall(r"\d+(?:\.\d+)?", theirs)
    if not numbers:
        return
    press = measured(MODELS[head], "observed-attention" if "`" in theirs else technique, budget, "kvpress")
    assert numbers[:2] == [press["recall"], press["multi-turn"]]
    assert float(numbers[2]) == pytest.approx(megabytes(press), abs=0.51 if head.endswith("140") else 0.001)
    assert len(numbers) == 3 or float(numbers[3]) == pytest.approx(float(press["decode tok/s"]), abs=0.51)


def test_both_models_have_a_table_and_the_trained_one_says_so() -> None:
    assert {head for head, _ in rows()} == set(MODELS)
    assert "trained on these tasks' own sentences" in README and "trained on these tasks' own sentences" in PAGE
