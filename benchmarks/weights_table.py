"""The figures of weight techniques as a file and as a table: `weights_quality.py` makes them, others may add columns.

A row is known by its model, view, recipe and passages. Its figures are numbers, or {"value", "low", "high"} with an
interval; a column is shown where any row has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty.files import replace_file
from thrifty.recipe import Recipe

if TYPE_CHECKING:
    from thrifty.claims.harness.scores.passages import Cut

Figures = dict[str, Any]
Key = dict[str, Any]
BEGIN, END = "<!-- table: weights.json -->", "<!-- end of table -->"
NONE = "–"


def number(digits: int, factor: float = 1.0) -> Callable[[Any], str]:
    """How a figure is written: rounded, with its interval where it has one."""

    def text(value: Any) -> str:
        if not isinstance(value, dict):
            return f"{value * factor:.{digits}f}"
        own, low, high = (f"{value[name] * factor:.{digits}f}" for name in ("value", "low", "high"))
        return f"{own} ({low} to {high})"

    return text


@dataclass(frozen=True)
class Column:
    """A figure of a row, by its name in the JSON file, and how the table shows it."""

    name: str
    title: str
    text: Callable[[Any], str]


COLUMNS = (
    Column("bits", "bits a weight", number(2)),
    Column("kl", "KL, nats", number(4)),
    Column("top1", "same first choice", number(3)),
    Column("perplexity", "perplexity", number(2)),
    Column("recovery", "tasks kept", number(3)),
    Column("decode", "decode tok/s", number(1)),
    Column("prefill", "prefill tok/s", number(0)),
    Column("seconds", "compress s", number(0)),
    Column("peak", "peak MB", number(0, 1e-6)),
    Column("bytes", "size MB", number(1, 1e-6)),
    Column("commit", "made at", lambda value: str(value)),
    Column("date", "on", lambda value: str(value)),
)


@dataclass
class Rows:
    """Figures by row, in the order in which they were made."""

    held: dict[str, tuple[Key, Figures]] = field(default_factory=dict)

    def has(self, key: Key) -> bool:
        """Whether a row was measured, or cannot be; one that failed was not."""
        return _name(key) in self.held and "error" not in self.held[_name(key)][1]

    def add(self, key: Key, figures: Figures) -> None:
        """One row, beside what it has already."""
        known = {} if not self.has(key) else self.held[_name(key)][1]
        self.held[_name(key)] = key, {**known, **figures}

    def table(self) -> list[str]:
        """Lines of Markdown: a table for each model and view, rows by bits a weight, most first."""
        lines: list[str] = []
        for model, view in dict.fromkeys((key["model"], key["view"]) for key, _ in self.held.values()):
            rows = [(key, own) for key, own in self.held.values() if (key["model"], key["view"]) == (model, view)]
            shown = [(key, own) for key, own in rows if "unfit" not in own]
            lines += [f"**{model}**, {VIEWS[view]}, {_passages(rows)}", "", *_table(shown), ""]
            unfit = [f"- {label(key)}: {own['unfit']}" for key, own in rows if "unfit" in own]
            lines += ["Not for this model:", "", *unfit, ""] if unfit else []
        return lines[:-1]


VIEWS = {
    "offgrid": "off-grid view (weights that lie on no grid)",
    "file": "the file's values, which are the baseline",
}


def key_of(model: str, view: str, recipe: Sequence[dict[str, Any]], chosen: Sequence[Cut], peer: str = "") -> Key:
    """What a row is known by. peer: whose quantiser stands in a recipe's place, "" for none."""
    key = {"model": model, "view": view, "weights": list(recipe), "passages": [cut.name for cut in chosen]}
    return key | ({"peer": peer} if peer else {})


def label(key: Key) -> str:
    """What the table calls a row."""
    if "peer" in key:
        return f"*{key['peer']}*"
    return Recipe(weights=key["weights"]).label() if key["weights"] else "uncompressed"


def read(path: Path) -> Rows:
    """The rows of a JSON file; none where there is no file."""
    if not path.exists():
        return Rows()
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return Rows({_name(row["key"]): (row["key"], row["figures"]) for row in rows})


def write(path: Path, rows: Rows) -> None:
    """The rows to a JSON file, the old one or the new one whenever the process is killed."""
    document = {"rows": [{"key": key, "figures": figures} for key, figures in rows.held.values()]}
    replace_file(path, json.dumps(document, indent=1) + "\n")


def put(page: Path, rows: Rows) -> str:
    """The table between its marks on a page; returns it. Raises ValueError where the page has no marks."""
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text:
        raise ValueError(f"{page} has no line {BEGIN}: put it where the table belongs")
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2] if END in rest else "\n" + rest.lstrip("\n")
    table = "\n".join(rows.table())
    replace_file(page, f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}")
    return table


def _table(rows: list[tuple[Key, Figures]]) -> list[str]:
    columns = [column for column in COLUMNS if any(column.name in own for _, own in rows)]
    lines = ["| technique | " + " | ".join(column.title for column in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for key, own in sorted(rows, key=lambda row: -row[1].get("bits", 0.0)):
        cells = [column.text(own[column.name]) if column.name in own else NONE for column in columns]
        if "error" in own:
            cells[0] = f"failed: {own['error']}"
        lines.append(f"| {label(key)} | " + " | ".join(cells) + " |")
    return lines


def _passages(rows: Iterable[tuple[Key, Figures]]) -> str:
    counts = sorted({len(key["passages"]) for key, _ in rows})
    return f"{' or '.join(map(str, counts))} passages of prose"


def _name(key: Key) -> str:
    return json.dumps(key, sort_keys=True)
