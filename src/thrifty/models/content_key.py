"""A checkpoint's content as a short key, remembered by path, size and time so that a second start hashes nothing."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from thrifty.errors import CheckpointError, StorageError
from thrifty.models.cache_directory import cache_directory, storage_errors, write_text

_BLOCK = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


def content_key(paths: Sequence[Path]) -> str:
    """A SHA-256 over the names and contents of files, as 64 hexadecimal digits.

    Raises CheckpointError for a file that cannot be read. A cache directory that cannot be written costs only the
    memory of the result.
    """
    if len(paths) == 1:
        return remembered_digest(paths[0])
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda item: item.name):
        total.update(os.fsencode(f"{path.name}\0{remembered_digest(path)}\n"))
    return total.hexdigest()


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
    """The SHA-256 of a file, hashed only where path, size, times or inode are new."""
    memory = _memory(path)
    try:
        known = memory.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        known = ""
    if _DIGEST.fullmatch(known):
        return known
    digest = file_digest(path)
    if _memory(path) == memory:  # the file did not change while it was read
        try:
            with storage_errors(memory.parent):
                memory.parent.mkdir(parents=True, exist_ok=True)
                write_text(memory, digest)
        except StorageError:
            return digest
    return digest


def _memory(path: Path) -> Path:
    try:
        status = os.stat(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}"
    return cache_directory() / "keys" / hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]
