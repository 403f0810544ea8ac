"""Where a folder is made: a hidden one beside it, which appears under its name when it is whole."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thrifty.errors import StorageError
from thrifty.files import replace_file
from thrifty.models.store import cache_directory as files

SUFFIX = ".compressing"  # behind the name of the hidden folder
IDENTITY, LOCK, RESULT = "identity.json", "lock", "result"
SPARE = 16 << 20  # bytes of the disk that are left to others


class Workplace:
    """The hidden folder of one target, held alone by this process from `opened` on.

    path: of it. resumed: whether it holds work of an earlier run on the same question.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f".{target.name}{SUFFIX}")
        self.resumed = False

    def recover(self) -> None:
        """Give the target its old content back where a process was killed while it replaced it. Nothing happens where
        no work was left, or where another process is at it.
        """
        if not self.path.is_dir():
            return
        with files.locked_now(self.path / LOCK) as is_held, self.errors():
            if is_held:
                files.recover(self.target)

    @contextmanager
    def opened(self, identity: Mapping[str, Any]) -> Iterator[Workplace]:
        """Within it the folder is there, with what an earlier run with this identity left, and with nothing of another.

        Raises StorageError where another process makes the same target, or nothing can be written.
        """
        with self.errors():
            self.path.mkdir(parents=True, exist_ok=True)
        with files.locked_now(self.path / LOCK) as is_held:
            if not is_held:
                raise StorageError(f"another process is writing {self.target}; wait for it, or write elsewhere")
            with self.errors():
                self._begin(identity)
            try:
                yield self
            finally:
                if not any(self.path.glob("*.jsonl")):  # nothing is done that could be gone on with
                    files.remove(self.path)

    def publish(self) -> None:
        """The result appears under the target's name; what was needed to make it goes. What was there is replaced."""
        files.publish(self.path / RESULT, self.target)
        files.remove(self.path)

    def result(self) -> Path:
        """The folder to fill, empty."""
        files.remove(self.path / RESULT)
        (self.path / RESULT).mkdir()
        return self.path / RESULT

    def check_room(self, needed: int, what: str) -> None:
        """Raise StorageError where the disk has no room for so many bytes more."""
        held = sum(file.stat().st_blocks * 512 for file in self.path.iterdir() if file.is_file())
        free = shutil.disk_usage(self.path).free
        if free + held < needed + SPARE:
            raise StorageError(
                f"{self.target.parent}: {what} takes about {needed / 1e6:.0f} MB while it is made, and "
                f"{(free + held) / 1e6:.0f} MB are free. Make room there, or write elsewhere (-o)."
            )

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the system's errors of a write into a StorageError that says what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                free = shutil.disk_usage(self.target.parent).free / 1e6
                raise StorageError(
                    f"{self.target.parent}: the disk is full ({free:.0f} MB free). What is done is kept in "
                    f"{self.path.name}: make room and give the same command again, or remove it."
                ) from error
            raise StorageError(f"{self.target}: cannot be written: {error.strerror or error}") from error

    def _begin(self, identity: Mapping[str, Any]) -> None:
        known = self.path / IDENTITY
        text = json.dumps(identity, sort_keys=True)
        if known.is_file() and known.read_text("utf-8") == text:
            self.resumed = True
            return
        for path in self.path.iterdir():
            if path.name != LOCK:
                files.remove(path)
        replace_file(known, text)
