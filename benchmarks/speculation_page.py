"""The page of `speculation.py`: its rows as a file and as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HEAD = """# What drafts gain

Made by `benchmarks/speculation.py`, whose head says how. `×`: of plain decoding in the same run. bound: what step costs
and acceptance allow; reached: the share of it. same: whether every token is plain decoding's.
"""


def say(text: str) -> None:
    """What is going on, at once."""
    print(text, flush=True)


def row_of(**figures: Any) -> Row:
    """A row with its day."""
    return {**figures, "date": datetime.now(UTC).date().isoformat()}


def rows_of(path: Path) -> list[Row]:
    """The rows of a file; none where it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def page_of(rows: Sequence[Row]) -> str:
    """The whole page as Markdown."""
    return HEAD + "".join(f"\n{line}" for row in rows for line in _table(row)) + "\n"


def _table(row: Row) -> Iterator[str]:
    """One kind of prompts with one model and draft."""
    costs = {int(rows): seconds for rows, seconds in row["costs"].items()}
    yield f"## {row['model']}, drafts by {row['draft']}: {row['kind']}\n"
    yield (
        f"{row['threads']} threads, {row['tokens']} tokens an answer, {row['date']}. A step of 1 row takes "
        f"{1e3 * costs[1]:.1f} ms, of 5 {1e3 * costs[5]:.1f}, of 16 {1e3 * costs[16]:.1f}; one of the draft "
        f"{1e3 * row['draft_step']:.1f} ms."
    )
    if row["void"]:
        yield f"\n**VOID: {row['void']} of the machine.**"
    yield "\n| side | tok/s | × | tokens a step | rows a step | α | bound | reached | same |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, side in row["sides"].items():
        bound = side["bound"]
        limits = ("–", "–") if bound is None else (f"{bound:.2f} ×", f"{side['times'] / bound:.0%}")
        rate = f"{side['acceptance']:.2f}" if name.startswith("speculative") else "–"
        yield (
            f"| {name} | {side['rate']:.1f} | {side['times']:.2f} | {side['tokens_a_step']:.2f} | "
            f"{side['rows_a_step']:.1f} | {rate} | {limits[0]} | {limits[1]} | {'yes' if side['same'] else 'no'} |"
        )
    plain = row["sides"]["plain"]["rate"]
    for name, peer in row["peers"].items():
        yield f"| {name} | {peer['rate']:.1f} | {peer['rate'] / plain:.2f} | – | – | – | – | – | – |"
    yield ""
