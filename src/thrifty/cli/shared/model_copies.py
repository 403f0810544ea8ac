"""Converted copies for people and programs: listed, and removed once that was confirmed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from thrifty.cli.shared import output
from thrifty.cli.shared.layout import Column

if TYPE_CHECKING:
    from thrifty.models.store.copies import Copy

UNKNOWN = "a checkpoint that was not loaded by this version yet"


def show(as_json: bool) -> None:
    """All copies, the largest first."""
    from thrifty.models.store.copies import copies

    held = copies()
    if as_json:
        output.json_line([_document(copy) for copy in held])
        return
    if not held:
        output.say("There are no converted copies; loading a model makes one.")
        return
    _table(held)
    output.note("`thrifty models --remove MODEL` removes one; it is made again when its model is loaded")


def say_total() -> None:
    """How much all copies take, where there are any."""
    from thrifty.models.store.copies import copies

    held = copies()
    if held:
        total = output.megabytes(sum(copy.nbytes for copy in held))
        count = "1 converted copy takes" if len(held) == 1 else f"{len(held)} converted copies take"
        output.note(f"{count} {total} in the cache; --copies lists them, --remove removes some")


def remove(targets: Sequence[str], sure: bool, as_json: bool) -> None:
    """Remove what the words name, once it was confirmed. Raises typer.BadParameter where nobody could be asked."""
    from thrifty.models.store import copies

    chosen = list({copy.path: copy for target in targets for copy in copies.matching(target)}.values())
    if not chosen:  # `all` and `unusable` may name none
        if as_json:
            output.json_line([])
        else:
            output.say("There are no such copies.")
        return
    total = output.megabytes(sum(copy.nbytes for copy in chosen))
    if not sure:
        if as_json or not sys.stdin.isatty():
            raise typer.BadParameter(f"nobody can be asked here; --yes removes {len(chosen)} copies ({total}).")
        _table(chosen)
        if not typer.confirm(f"Remove {len(chosen)} converted copies ({total})? The checkpoints stay.", err=True):
            output.note("nothing was removed")
            raise typer.Exit(1)
    for copy in chosen:
        copies.remove(copy)
    if as_json:
        output.json_line([_document(copy) | {"removed": True} for copy in chosen])
    else:
        output.say(f"removed {len(chosen)} converted {'copy' if len(chosen) == 1 else 'copies'} ({total})")


def _table(held: Sequence[Copy]) -> None:
    columns = (
        Column("converted copy of", number=False),
        Column("size", rank=1),
        Column("usable", number=False, rank=1),
        Column("name", number=False, rank=2),
    )
    rows = []
    for copy in held:
        unknown = UNKNOWN if copy.key else "nothing"
        label = copy.name or (unknown if copy.origin is None else str(copy.origin))
        usable = "yes" if copy.fault is None else f"no: {copy.fault}"
        rows.append((label, output.megabytes(copy.nbytes), usable, copy.path.name))
    output.table("", columns, rows)
    output.say(f"{len(held)} together: {output.megabytes(sum(copy.nbytes for copy in held))}")


def _document(copy: Copy) -> dict[str, Any]:
    return {
        "path": str(copy.path),
        "model": copy.name,
        "checkpoint": None if copy.origin is None else str(copy.origin),
        "bytes": copy.nbytes,
        "usable": copy.fault is None,
        "fault": copy.fault,
    }
