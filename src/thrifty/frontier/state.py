"""The state of a search: every measurement is a line of a file as soon as it is made, so that a killed search goes on
where it was.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from thrifty.errors import StorageError
from thrifty.models.cache_directory import cache_directory, storage_errors

FORMAT = 1


class State:
    """Values by (kind, key). The first line of the file says what they belong to.

    Without a path it lives in memory alone.
    """

    def __init__(self, path: Path | None, question: Mapping[str, Any], *, fresh: bool = False) -> None:
        """question: JSON-ready values that a state must share to be used. fresh: forget what the file holds.

        Raises StorageError where the file belongs to another question (with the first value that differs), is no state,
        is in use, or cannot be read or written. A last line that a kill left unfinished is cut off.
        """
        self.path = path
        self._values: dict[tuple[str, str], Any] = {}
        self._file = -1
        if path is None:
            return
        with storage_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._lock()
            if fresh:
                os.ftruncate(self._file, 0)
            self._open({"format": FORMAT, **question})
        except BaseException:
            self.close()
            raise

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
        self._append({"kind": kind, "key": key, "value": value})

    def close(self) -> None:
        """Let the file go."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> State:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StorageError(f"{self.path}: cannot be locked: {error.strerror or error}") from error
            raise StorageError(
                f"{self.path}: another search is using this state. Wait for it, or name another file with --state."
            ) from error

    def _open(self, header: dict[str, Any]) -> None:
        lines = self._read()
        if not lines:
            self._append(header)
            return
        if not isinstance(lines[0], dict) or "format" not in lines[0]:
            raise StorageError(f"{self.path}: not the state of a search; name another file with --state")
        for name in dict.fromkeys([*header, *lines[0]]):
            mine, found = json.loads(json.dumps(header.get(name))), lines[0].get(name)
            if mine != found:
                raise StorageError(
                    f"{self.path}: this state belongs to another search: its {name} is {found!r}, not {mine!r}. "
                    "Start it anew with --fresh, or name another file with --state."
                )
        for number, line in enumerate(lines[1:], 2):
            if not isinstance(line, dict) or not {"kind", "key", "value"} <= set(line):
                raise StorageError(self._damaged(number))
            self._values[line["kind"], line["key"]] = line["value"]

    def _read(self) -> list[Any]:
        """The whole lines; what follows them is cut off."""
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        lines: list[Any] = []
        good = 0
        for line in data.splitlines(keepends=True):
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if value is None or not line.endswith(b"\n"):
                if good + len(line) < len(data):
                    raise StorageError(self._damaged(len(lines) + 1))
                break
            lines.append(value)
            good += len(line)
        if good < len(data):
            os.ftruncate(self._file, good)
        return lines

    def _damaged(self, line: int) -> str:
        return f"{self.path}: line {line} is damaged. Start it anew with --fresh, or name another file with --state."

    def _append(self, value: Any) -> None:
        if self._file < 0:
            return
        assert self.path is not None
        start = os.lseek(self._file, 0, os.SEEK_END)
        data = (json.dumps(value, ensure_ascii=False) + "\n").encode()
        with storage_errors(self.path.parent):
            try:
                while data:
                    data = data[os.write(self._file, data) :]
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, start)
                raise


def default_path(question: Mapping[str, Any]) -> Path:
    """Where a question's state lies unless the user says otherwise."""
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]
    return cache_directory() / "fit" / f"{digest}.jsonl"
