"""The state of a search: every measurement is a line of a file as soon as it is made, so that a killed search goes on
where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from thrifty.models.store.cache_directory import cache_directory, storage_errors
from thrifty.storage.journal import Journal

REMEDY = "Start it anew with --fresh, or name another file with --state."


class SearchState:
    """Values by (kind, key). The first line of the file says what they belong to.

    Without a path it lives in memory alone.
    """

    def __init__(self, path: Path | None, question: Mapping[str, Any], *, fresh: bool = False) -> None:
        """question: JSON-ready values that a state must share to be used. fresh: forget what the file holds.

        Raises StorageError, see `Journal`.
        """
        self.path = path
        self._values: dict[tuple[str, str], Any] = {}
        if path is not None:
            with storage_errors(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(path, question, what="state of a search", remedy=REMEDY, fresh=fresh)
        for number, line in self._journal.lines:
            if not {"kind", "key", "value"} <= set(line):
                self.close()
                raise self._journal.damaged(number)
            self._values[line["kind"], line["key"]] = line["value"]

    def __len__(self) -> int:
        return len(self._values)

    def find(self, kind: str, key: str) -> Any:
        """The value, None where there is none."""
        return self._values.get((kind, key))

    def add(self, kind: str, key: str, value: Any) -> None:
        """Keep a JSON-ready value; it is on disk when this returns. Raises StorageError where it is not: then it is
        kept in memory, and the file is as before.
        """
        self._values[kind, key] = value
        self._journal.add({"kind": kind, "key": key, "value": value})

    def close(self) -> None:
        """Let the file go."""
        self._journal.close()

    def __enter__(self) -> SearchState:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def default_path(question: Mapping[str, Any]) -> Path:
    """Where a question's state lies unless the user says otherwise."""
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]
    return cache_directory() / "fit" / f"{digest}.jsonl"
