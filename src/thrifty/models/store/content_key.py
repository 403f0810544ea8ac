"""The content of files as short keys; those of large files are remembered, so that a second start hashes little."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from thrifty.errors import CheckpointError, StorageError
from thrifty.files import replace_file
from thrifty.models.store.cache_directory import cache_directory, storage_errors

SMALL = 1 << 20  # bytes that are read faster than it is worth remembering
_BLOCK = 1 << 20
_TICK = 50_000_000  # nanoseconds that a file system's clock may lag behind
_DIGEST = re.compile(r"[0-9a-f]{64}")


def combined(keys: Mapping[str, str]) -> str:
    """One key, 64 hexadecimal digits, of several files' names and keys."""
    total = hashlib.sha256()
    for name in sorted(keys):
        total.update(os.fsencode(f"{name}\0{keys[name]}\n"))
    return total.hexdigest()


def file_key(path: Path) -> str:
    """The SHA-256 of a file's content: small files are read each time, large ones remembered (`remembered_digest`).

    Raises CheckpointError for a file that cannot be read.
    """
    return file_digest(path) if _status(path).st_size <= SMALL else remembered_digest(path)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, read whole."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def remembered_digest(path: Path) -> str:
    """The SHA-256 of a file, hashed only where path, size, times or inode are new.

    A cache directory that cannot be written costs only the memory of the result.
    """
    memory, is_settled = _memory(path), _is_settled(path)
    try:
        known = memory.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        known = ""
    if _DIGEST.fullmatch(known):
        return known
    digest = file_digest(path)
    if is_settled and _memory(path) == memory:  # the file did not change while it was read
        try:
            with storage_errors(memory.parent):
                memory.parent.mkdir(parents=True, exist_ok=True)
                replace_file(memory, digest)
        except StorageError:
            return digest
    return digest


def _memory(path: Path) -> Path:
    status = _status(path)
    identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}"
    return cache_directory() / "keys" / hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]


def _is_settled(path: Path) -> bool:
    """Whether a later change of the file is sure to get another time than it has now."""
    return time.time_ns() - _status(path).st_ctime_ns > _TICK


def _status(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
