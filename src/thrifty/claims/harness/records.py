"""The record of claims that were run: a JSON file, and the page that is made of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.errors import StorageError
from thrifty.files import replace_file

VERSION = 1


@dataclass(frozen=True)
class ClaimRow:
    """One claim's last result. minutes: what it took. date: of the run, ISO. machine: processor and cores."""

    technique: str
    paper: str
    source: str
    measured: str
    setting: str
    rule: str
    verdict: str
    minutes: float
    date: str
    machine: str
    figures: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


def read(path: Path) -> dict[str, ClaimRow]:
    """The rows of a record by technique; empty where there is no file.

    Raises StorageError where it cannot be read or is not a record: results are never thrown away unasked.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != VERSION:
            raise ValueError(f"it has version {document['version']}, this is {VERSION}")
        return {row["technique"]: ClaimRow(**row) for row in document["claims"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise StorageError(f"{path} is not a record of claims ({reason}); move it away to start anew") from error


def write(rows: Mapping[str, ClaimRow], page: Path, unclaimed: Mapping[str, str]) -> None:
    """Write the page and, beside it, the record: each is the old file or the new one, whatever happens.

    unclaimed: techniques without a claim, and their stages. Raises StorageError where they cannot be written.
    """
    ordered = [rows[name] for name in sorted(rows)]
    document = {"version": VERSION, "claims": [row.as_dict() for row in ordered]}
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        replace_file(record_of(page), json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        replace_file(page, markdown(rows, unclaimed))
    except OSError as error:
        raise StorageError(
            f"cannot write {page}: {error.strerror or error}; name another file with --output"
        ) from error


def record_of(page: Path) -> Path:
    """The JSON file that belongs to a page."""
    return page.with_suffix(".json")


HEAD = """# Claims

What papers say, measured here. Written by `thrifty reproduce --all -o FILE`; with a technique's name in the place of
`--all` it renews one row. A verdict follows from the figures by the rule below the table, never by hand: a claim that
fails is reported as failed. The model is far smaller than the papers', so that a verdict speaks of this setting alone.

| technique | paper says | measured here | setting | verdict | minutes | date | machine |
|---|---|---|---|---|---|---|---|
"""


def markdown(rows: Mapping[str, ClaimRow], unclaimed: Mapping[str, str]) -> str:
    """The page."""
    lines = []
    for name in sorted(rows):
        row = rows[name]
        said = f"{row.paper} ({row.source})"
        cells = (f"`{name}`", said, row.measured, row.setting, f"**{row.verdict}**", f"{row.minutes:.1f}")
        lines.append("| " + " | ".join(map(_cell, (*cells, row.date, row.machine))) + " |")
    rules = [f"- `{name}`: {rows[name].rule}." for name in sorted(rows)]
    none = [f"- `{name}` ({stage}): no claim yet." for name, stage in unclaimed.items()]
    text = HEAD + "\n".join(lines) + "\n"
    if rules:
        text += "\n## How verdicts are made\n\n" + "\n".join(rules) + "\n"
    if none:
        text += "\n## Techniques without a claim\n\n" + "\n".join(none) + "\n"
    return text


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
