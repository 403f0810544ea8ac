"""`thrifty compress --list-formats`: what every stored format takes, from real packed layers."""

from __future__ import annotations

from typing import Any

from thrifty.cli.shared import output
from thrifty.cli.shared.layout import Column

ROWS = COLUMNS = 2048  # of the layers


def show(as_json: bool) -> None:
    """A line a variant, the fewest bits first."""
    rows = document()
    if as_json:
        output.json_line(rows)
        return
    columns = (
        Column("format", number=False),
        Column("bits per weight", rank=1),
        Column("native kernel", number=False, rank=2),
        Column("files that hold it", number=False, rank=1),
    )
    cells = [
        (row["format"], f"{row['bits_per_weight']:.3f}", "yes" if row["native"] else "no", ", ".join(row["files"]))
        for row in rows
    ]
    output.table(f"layers of {ROWS} x {COLUMNS}, with scales, tables and padding", columns, cells)


def document() -> list[dict[str, Any]]:
    """JSON-ready."""
    from thrifty.formats.examples import examples
    from thrifty.models.export.files import files_of

    listed = []
    for linear in examples(ROWS, COLUMNS):
        row = {
            "format": name_of(linear),
            "kind": linear.kind,
            "bits_per_weight": 8 * linear.nbytes / (ROWS * COLUMNS),
            "native": linear.native() is not None,
            "files": ["safetensors of thrifty compress", *files_of(linear)],
        }
        listed.append(row)
    return sorted(listed, key=lambda row: (row["bits_per_weight"], row["format"]))


def name_of(linear: Any) -> str:
    """The label, and what tells variants of one label apart."""
    if getattr(linear, "minimums", None) is not None and linear.kind == "group":
        return f"{linear.label}, minimums"
    return f"{linear.label}, zero points" if hasattr(linear, "zeros") else str(linear.label)
