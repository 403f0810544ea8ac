"""A file of per-item records, one JSON line each, that can be continued after a kill or a full disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from thrifty.evaluation.tasks.task import Record
from thrifty.storage.journal import Journal

REMEDY = "Repeat that run's options to continue it, delete a damaged line to run its item again, or name another file."

Key = tuple[str, str, str]
"""Whose record it is ("baseline", or a recipe), task, item."""


class RecordFile:
    """The records of one run, old and new. Use as a context: another process is kept out of the file meanwhile."""

    def __init__(self, path: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> None:
        """path: None keeps records in memory only. settings: JSON-ready. Raises StorageError, see `Journal`."""
        self._journal = Journal(path, settings, what="eval records", remedy=REMEDY)
        self._records: dict[Key, Record] = {}
        try:
            for number, values in self._journal.lines:
                self._take(number, values)
        except BaseException:
            self.close()
            raise

    def get(self, side: str, task: str, item: str) -> Record | None:
        """The record, None where that item has not run."""
        return self._records.get((side, task, item))

    def of(self, side: str, task: str) -> list[Record]:
        """All records of one side of a task, in the order of the file."""
        return [record for key, record in self._records.items() if key[:2] == (side, task)]

    def add(self, side: str, record: Record) -> None:
        """Keep one more record; it is on the disk when this returns.

        Raises StorageError where it cannot be written; what was kept before stays whole.
        """
        self._journal.add({"side": side, **record.as_dict()})
        self._records[side, record.task, record.item] = record

    def __len__(self) -> int:
        return len(self._records)

    def close(self) -> None:
        """Let others at the file."""
        self._journal.close()

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, number: int, values: dict[str, Any]) -> None:
        try:
            record = Record.from_dict(values)
            self._records[str(values["side"]), record.task, record.item] = record
        except (ValueError, KeyError, TypeError) as error:
            raise self._journal.damaged(number, str(error)) from error
