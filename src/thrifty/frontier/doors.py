"""What the search takes from the evaluation room, by one name each."""

from __future__ import annotations

from thrifty.frontier.stand_ins import (
    Item,
    Machine,
    Record,
    Task,
    decode_seconds,
    load,
    names,
    recovery,
    score,
    this_machine,
)

__all__ = [
    "Item",
    "Machine",
    "Record",
    "Task",
    "decode_seconds",
    "load",
    "names",
    "recovery",
    "score",
    "this_machine",
]
