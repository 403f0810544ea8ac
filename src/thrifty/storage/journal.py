"""A file of JSON lines that survives a kill, a full disk and being continued.

The first line says what the others belong to; a file of other settings is refused. A line is on the disk before `add`
returns, so only the last one can be unfinished, and it is cut off when the file is opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from thrifty.errors import StorageError

VERSION = 1


class Journal:
    """lines: (number in the file, what it holds) of the lines after the first that were there before. Use as a context:
    another process is kept out of the file meanwhile.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
        *,
        what: str,
        remedy: str,
        fresh: bool = False,
    ) -> None:
        """path: None keeps nothing. settings: JSON-ready, what a file must share to be continued. what: the file's name
        in errors, such as "records". remedy: what to do with one that cannot be continued. fresh: forget what it holds.

        Raises StorageError where the file is something else, another run's (naming what differs), damaged, in use, or
        cannot be opened or written.
        """
        self.path = None if path is None else Path(path)
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self._settings = json.loads(json.dumps(dict(settings)))
        self._what, self._remedy = what, remedy
        self._file, self._size, self._count = -1, 0, 0
        if self.path is None:
            return
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(f"cannot open the {what} '{self.path}': {error.strerror}") from error
        try:
            self._lock()
            self._load(b"" if fresh else os.pread(self._file, os.fstat(self._file).st_size, 0))
        except BaseException:
            self.close()
            raise

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a JSON-ready line; it is on the disk when this returns.

        Raises StorageError where it cannot be written; what was kept before stays whole.
        """
        if self._file < 0:
            return
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        try:
            _write_at(self._file, data, self._size)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise StorageError(
                f"cannot write to the {self._what} '{self.path}': {error.strerror}. The {self._count} lines so far are "
                "kept; make room and repeat the command to go on."
            ) from error
        self._size += len(data)
        self._count += 1

    def damaged(self, number: int, why: str = "") -> StorageError:
        """The error of a line that cannot be used."""
        reason = f": {why}" if why else ""
        return StorageError(f"line {number} of the {self._what} '{self.path}' is damaged{reason}. {self._remedy}")

    def close(self) -> None:
        """Let others at the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(
                f"another run is using the {self._what} '{self.path}'. Wait for it, or name another file."
            ) from error

    def _load(self, content: bytes) -> None:
        mark = json.dumps({"thrifty": self._what})[:-1].encode()
        if content[: len(mark)] != mark[: len(content)]:
            raise StorageError(f"'{self.path}' holds no {self._what} of Thrifty's and is left alone; name another file")
        whole = content[: content.rfind(b"\n") + 1]
        os.ftruncate(self._file, len(whole))
        self._size = len(whole)
        lines = [self._parsed(number, line) for number, line in enumerate(whole.splitlines(), 1)]
        if not lines:
            self.add({"thrifty": self._what, "version": VERSION, "settings": self._settings})
            return
        self._check(lines[0])
        self.lines = list(enumerate(lines[1:], 2))
        self._count = len(lines)

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except ValueError as error:
            raise self.damaged(number, str(error)) from error
        if not isinstance(value, dict):
            raise self.damaged(number)
        return value

    def _check(self, header: dict[str, Any]) -> None:
        version, theirs = header.get("version"), header.get("settings")
        if not isinstance(theirs, dict):
            raise self.damaged(1)
        if version != VERSION:
            raise StorageError(
                f"the {self._what} '{self.path}' has version {version}, this is {VERSION}. {self._remedy}"
            )
        for name in dict.fromkeys([*self._settings, *theirs]):
            mine, other = self._settings.get(name), theirs.get(name)
            if mine != other:
                raise StorageError(
                    f"the {self._what} '{self.path}' belongs to a run with {name} = {json.dumps(other)}; this run has "
                    f"{json.dumps(mine)}. {self._remedy}"
                )


def _write_at(file: int, data: bytes, place: int) -> None:
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written
