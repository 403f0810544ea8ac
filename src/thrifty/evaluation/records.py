"""A file of per-item records, one JSON line each: it survives a kill, a full disk and being continued.

The first line holds the settings of the run; a file of other settings is refused. A record is on the disk before the
next item starts. Only the last line can be half-written, and it is cut off when the file is opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from thrifty.errors import StorageError
from thrifty.evaluation.tasks.task import Record

MARK = "thrifty eval records"
VERSION = 1

Key = tuple[str, str, str]
"""Whose record it is ("baseline", or a recipe), task, item."""


class RecordFile:
    """The records of one run, old and new. Use as a context: another process is kept out of the file meanwhile."""

    def __init__(self, path: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> None:
        """path: None keeps records in memory only. settings: JSON-ready.

        Raises StorageError where the file is another program's, another run's (naming what differs), damaged, in use,
        or cannot be written.
        """
        self.path = None if path is None else Path(path)
        self.settings = json.loads(json.dumps(dict(settings)))
        self._records: dict[Key, Record] = {}
        self._file = -1
        self._size = 0
        if self.path is not None:
            self._open(self.path)

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
        if self.path is not None:
            self._write({"side": side, **record.as_dict()})
        self._records[side, record.task, record.item] = record

    def __len__(self) -> int:
        return len(self._records)

    def close(self) -> None:
        """Let others at the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(f"cannot open the records '{path}': {error.strerror}") from error
        try:
            self._lock(path)
            self._load(path)
        except BaseException:
            self.close()
            raise

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(f"another run is writing to the records '{path}'; wait, or name another file") from error

    def _load(self, path: Path) -> None:
        content = path.read_bytes()
        beginning = json.dumps({"format": MARK})[:-1].encode()
        if content[: len(beginning)] != beginning[: len(content)]:
            raise StorageError(f"'{path}' holds no records of `thrifty eval` and is left alone; name another file")
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.ftruncate(self._file, len(whole))
        self._size = len(whole)
        lines = whole.decode(errors="replace").splitlines()
        if not lines:
            self._write({"format": MARK, "version": VERSION, "settings": self.settings})
            return
        self._check_settings(path, lines[0])
        for key, record in _records(path, lines):
            self._records[key] = record

    def _check_settings(self, path: Path, line: str) -> None:
        try:
            header = json.loads(line)
            version, theirs = header["version"], dict(header["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"line 1 of the records '{path}' is damaged: {error}; name another file") from error
        if version != VERSION:
            raise StorageError(f"the records '{path}' are of version {version}, this is {VERSION}; name another file")
        for name in sorted(self.settings.keys() | theirs.keys()):
            mine, other = self.settings.get(name), theirs.get(name)
            if mine != other:
                raise StorageError(
                    f"the records '{path}' belong to a run with {name} = {json.dumps(other)}; this run has "
                    f"{json.dumps(mine)}. Repeat that run's options to continue it, or name another file."
                )

    def _write(self, document: Mapping[str, Any]) -> None:
        line = json.dumps(document, ensure_ascii=False).encode() + b"\n"
        try:
            _write_at(self._file, line, self._size)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise StorageError(
                f"cannot write to the records '{self.path}': {error.strerror}. The {len(self._records)} records so far "
                "are kept; make room and repeat the command to go on."
            ) from error
        self._size += len(line)


def _write_at(file: int, data: bytes, place: int) -> None:
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written


def _records(path: Path, lines: list[str]) -> Iterator[tuple[Key, Record]]:
    for number, line in enumerate(lines[1:], 2):
        try:
            values = json.loads(line)
            record = Record.from_dict(values)
            yield (str(values["side"]), record.task, record.item), record
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"line {number} of the records '{path}' is damaged: {error}. Delete that line to run its item again."
            ) from error
