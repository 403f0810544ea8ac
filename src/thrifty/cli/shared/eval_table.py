"""The tables of `thrifty eval`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.cli.shared import output
from thrifty.cli.shared.layout import Column

Row = Mapping[str, Any]


def show(document: Mapping[str, Any]) -> None:
    """Score, baseline and recovery by task."""
    rows = document["tasks"]
    compared = any(row["score"] for row in rows)
    before, recipe = document["baseline"], document["recipe"]
    whole = "compressed" if before["techniques"] else "uncompressed"
    columns = [Column("task", number=False), Column("items", rank=3), Column(whole, rank=1)]
    if compared:
        columns += [Column("recipe", rank=1), Column("recovery", rank=1), Column("95 % interval", rank=2)]
    beside = list(dict.fromkeys(name for row in rows for name in _beside(row)))
    columns += [Column(name, rank=4) for name in beside]
    if before["techniques"]:  # what was loaded is named, and what the recipe adds to it
        recipe = f"{before['label']}, then {recipe}" if compared else before["label"]
    title = f"{document['model']}, {recipe}, {document['length']} tokens, seed {document['seed']}"
    output.table(title, columns, [_cells(row, compared, beside) for row in rows])
    metrics = "; ".join(f"{row['task']}: {row['metric']}" for row in rows)
    say = output.say
    say(f"{metrics}. weights {document['weights']}")
    for row in rows:
        if row["undefined"]:
            say(f"{row['task']}: recovery is {row['undefined']}")


def show_protocol(document: Mapping[str, Any]) -> None:
    """Formats × tasks × difference of the text."""
    rows = [
        (
            row["format"],
            row["task"],
            str(row["items"]),
            f"{row['baseline']['value']:.3f}",
            f"{row['score']['value']:.3f}",
            _recovery(row)[0],
            f"{row['rouge_1']:.3f}",
            f"{row['rouge_l']:.3f}",
            f"{row['same_tokens']:.1f} of {row['tokens']:.1f}",
            f"{row['identical']:.0%}",
        )
        for row in document["rows"]
    ]
    columns = (
        Column("format", number=False),
        Column("task", number=False),
        Column("items", rank=4),
        Column("bf16", rank=1),
        Column("score", rank=1),
        Column("recovery", rank=2),
        Column("ROUGE-1", rank=2),
        Column("ROUGE-L", rank=2),
        Column("same first words", rank=3),
        Column("identical", rank=3),
    )
    title = f"{document['model']}, {document['length']} tokens, seed {document['seed']}: text against the bf16 model's"
    output.table(title, columns, rows)
    output.say(
        "weights off the grid, in bf16 unless the format says otherwise. ROUGE: F1 of the greedy answers with the "
        f"baseline's. Not reported: {document['not_reported']}.",
    )


def _cells(row: Row, compared: bool, beside: list[str]) -> list[str]:
    cells = [row["task"], str(row["items"]), f"{row['baseline']['value']:.3f}"]
    if compared:
        cells += [f"{row['score']['value']:.3f}" if row["score"] else "-", *_recovery(row)]
    return cells + [_beside(row).get(name, "") for name in beside]


def _recovery(row: Row) -> tuple[str, str]:
    recovery = row["recovery"]
    if recovery is None:
        return ("undefined" if row["undefined"] else "-", "")
    return f"{recovery['value']:.3f}", f"{recovery['low']:.3f} to {recovery['high']:.3f}"


def _beside(row: Row) -> dict[str, str]:
    """The figures beside the score: the recipe's, and in brackets the baseline's where it has one."""
    shown = {}
    for name, value in (row["beside"] or row["beside_baseline"]).items():
        reference = row["beside_baseline"].get(name) if row["beside"] else None
        shown[name] = f"{value:.4f}" if reference is None else f"{value:.4f} ({reference:.4f})"
    return shown
