"""What was measured already: an item's result is on disk as soon as it is there, and a run that was stopped goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from thrifty.errors import StorageError
from thrifty.models.store.cache_directory import cache_directory
from thrifty.storage.journal import Journal

FOLDER = "claims"
REMEDY = "Delete the file to measure anew."
KEPT = 30 * 86400  # seconds that results of older code lie untouched before they go


class State:
    """Results by what they are results of (technique tables, options, item), of one state of the code and one model's
    weights. Use as a context: another process is kept out of the file meanwhile.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """path: None keeps results in memory only. settings: JSON-ready, what results depend on beside their keys.

        Raises StorageError where the file is another's, damaged, in use or cannot be written.
        """
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"cannot make {path.parent}: {error.strerror or error}") from error
        self._journal = Journal(path, settings, what="results of claims", remedy=REMEDY)
        self._results: dict[str, Any] = {}
        self.added = 0  # results of this run
        for number, line in self._journal.lines:
            if "key" not in line or "result" not in line:
                self._journal.close()
                raise self._journal.damaged(number)
            self._results[line["key"]] = line["result"]

    def once(self, key: Sequence[Any], measure: Callable[[], Any]) -> Any:
        """The result of a JSON-ready key: what is there, or what `measure` returns (JSON-ready), kept."""
        name = key_of(key)
        if name not in self._results:
            result = measure()
            self._journal.add({"key": name, "result": result})
            self._results[name] = result
            self.added += 1
        return self._results[name]

    def has(self, key: Sequence[Any]) -> bool:
        """Whether that was measured."""
        return key_of(key) in self._results

    def __len__(self) -> int:
        return len(self._results)

    def close(self) -> None:
        """Let others at the file."""
        self._journal.close()

    def __enter__(self) -> State:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def key_of(key: Sequence[Any]) -> str:
    """The text that a key is kept by."""
    return json.dumps(key, sort_keys=True, ensure_ascii=False)


def state_of(source: str, weights: str, engine: Mapping[str, Any] | None = None) -> State:
    """The results of one state of the package's source, one checkpoint and one setting of the engine (JSON-ready, such
    as threads), in the cache directory; in memory alone for weights without a name.
    """
    if not weights:
        return State(None, {})
    name = "-".join([source[:16], weights[:16], *(f"{name}={value}" for name, value in sorted((engine or {}).items()))])
    path = cache_directory() / FOLDER / f"{name}.jsonl"
    _forget(path.parent)
    return State(path, {"source": source, "weights": weights, "engine": dict(engine or {})})


def _forget(folder: Path) -> None:
    """Remove results that nobody has touched for a month: nearly always of code that is gone."""
    for path in folder.glob("*.jsonl"):
        try:
            if time.time() - path.stat().st_mtime > KEPT:
                path.unlink()
        except OSError:
            continue  # another run took it, or it may not be removed: it does no harm
