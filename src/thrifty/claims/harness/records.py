"""The record of claims that were run: a JSON file, from which the page is made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.claims.harness.claim import Measurement
from thrifty.errors import StorageError

VERSION = 2
STALE = "stale"

Key = tuple[str, str]
"""Technique and model: a row each."""


@dataclass(frozen=True)
class Run:
    """What a row's figures come from. commit: of the package (its version outside a repository). dirty: whether the
    package differed from it. code: hash of the technique's file, defaults and claim. weights: hash of the checkpoint.
    seeds: of items; verdicts: by seed. tables: the cache recipes that ran. half: of the items. budget: `--minutes`.
    threads: of native code. minutes: what it took. date: ISO. beside: hash of what else the figures come from, the
    other techniques that ran and what measures them ("": of code that did not tell). heads: what the scores of heads
    come from, a kind each.
    """

    commit: str
    dirty: bool
    code: str
    weights: str
    seeds: tuple[int, ...]
    verdicts: Mapping[str, str]
    tables: tuple[str, ...]
    half: str
    budget: str
    threads: int
    machine: str
    minutes: float
    date: str
    beside: str = ""
    heads: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClaimRow:
    """The last result of one claim on one model. measurement: of the first seed. stale: why the last run gave none,
    with its date; then `verdict` is "stale", and nothing is left of what was there before.
    """

    technique: str
    model: str
    paper: str
    source: str
    rule: str
    verdict: str
    measurement: Measurement | None
    run: Run | None
    stale: str = ""

    @property
    def key(self) -> Key:
        """Technique and model."""
        return self.technique, self.model

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with what each part says and can tell."""
        document = dataclasses.asdict(self)
        if self.measurement is not None:
            parts = {
                "headline": [self.measurement.headline],
                "parts": self.measurement.parts,
                "gates": self.measurement.gates,
            }
            said = {name: [_said(part) for part in members] for name, members in parts.items()}
            document["measurement"] |= said | {"headline": said["headline"][0]}
        return document


def _said(part: Any) -> dict[str, Any]:
    """A part without what is empty, with its verdict and power."""
    full = dataclasses.asdict(part)
    verdict = part.verdict()
    kept = {name: value for name, value in full.items() if value not in ("", None)}
    return kept | {"verdict": verdict and verdict.value, "power": part.power}


def read(path: Path) -> dict[Key, ClaimRow]:
    """The rows of a record by technique and model; empty where there is no file.

    Raises StorageError where it cannot be read or is not a record: results are never thrown away unasked.
    """
    import pydantic

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != VERSION:
            raise ValueError(f"it has version {document['version']}, this is {VERSION}")
        rows = pydantic.TypeAdapter(list[ClaimRow]).validate_python([_plain(row) for row in document["claims"]])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise StorageError(f"{path} is not a record of claims ({reason}); move it away to start anew") from error
    return {row.key: row for row in rows}


def _plain(row: Any) -> dict[str, Any]:
    """A row without what `as_dict` adds for the reader."""
    measured = row.get("measurement")
    if measured is None:
        return dict(row)
    parts = {name: [_bare(part) for part in measured[name]] for name in ("parts", "gates")}
    return row | {"measurement": measured | parts | {"headline": _bare(measured["headline"])}}


def _bare(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in ("verdict", "power")}


def text_of(rows: Mapping[Key, ClaimRow]) -> str:
    """The record's file."""
    document = {"version": VERSION, "claims": [rows[key].as_dict() for key in sorted(rows)]}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def record_of(page: Path) -> Path:
    """The JSON file that belongs to a page."""
    return page.with_suffix(".json")
