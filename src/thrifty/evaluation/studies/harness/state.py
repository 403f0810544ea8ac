"""The state of a study: every answer and every timing is a line of a file as soon as it is there, so that a run that
was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from thrifty.evaluation.tasks.task import Record
from thrifty.models.store.cache_directory import cache_directory, storage_errors
from thrifty.storage.journal import Journal

REMEDY = "Start it anew with --fresh, or name another file with --state."


class StudyState:
    """Records by (cell, task, item), and other figures by (kind, key). Without a path it lives in memory alone.

    Use as a context: another process is kept out of the file meanwhile.
    """

    def __init__(self, path: Path | None, setting: Mapping[str, Any], *, fresh: bool = False) -> None:
        """setting: JSON-ready, what a file must share to be continued. fresh: forget what it holds. Raises
        StorageError, see `Journal`.
        """
        self.path = path
        self._records: dict[tuple[str, str, str], Record] = {}
        self._figures: dict[tuple[str, str], Any] = {}
        if path is not None:
            with storage_errors(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(path, setting, what="state of a study", remedy=REMEDY, fresh=fresh)
        try:
            for number, line in self._journal.lines:
                self._take(number, line)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._records) + len(self._figures)

    def record(self, cell: str, task: str, item: str) -> Record | None:
        """What came of an item, None where it has not run. cell: its key."""
        return self._records.get((cell, task, item))

    def add_record(self, cell: str, record: Record) -> None:
        """Keep what came of an item; it is on the disk when this returns. Raises StorageError where it cannot be."""
        self._journal.add({"cell": cell, **record.as_dict()})
        self._records[cell, record.task, record.item] = record

    def figure(self, kind: str, key: str) -> Any:
        """The value, None where there is none."""
        return self._figures.get((kind, key))

    def add_figure(self, kind: str, key: str, value: Any) -> None:
        """Keep a JSON-ready value, as `add_record`."""
        self._journal.add({"kind": kind, "key": key, "value": value})
        self._figures[kind, key] = value

    def close(self) -> None:
        """Let others at the file."""
        self._journal.close()

    def __enter__(self) -> StudyState:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, number: int, line: Mapping[str, Any]) -> None:
        try:
            if "cell" in line:
                record = Record.from_dict(line)
                self._records[str(line["cell"]), record.task, record.item] = record
            else:
                self._figures[line["kind"], line["key"]] = line["value"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._journal.damaged(number, str(error)) from error


def default_path(study: str, setting: Mapping[str, Any]) -> Path:
    """Where the state of a setting lies unless the user says otherwise."""
    digest = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]
    return cache_directory() / "studies" / f"{study}-{digest}.jsonl"
