"""The user's cache directory: where it is, how one writer at a time works in it, and how results appear whole."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thrifty.errors import StorageError
from thrifty.files import sync

VARIABLE = "THRIFTY_CACHE"


def cache_directory() -> Path:
    """The directory named by THRIFTY_CACHE, else the platform's cache directory for Thrifty."""
    override = os.environ.get(VARIABLE)
    if override:
        return Path(override)
    import platformdirs

    return Path(platformdirs.user_cache_dir("thrifty", appauthor=False))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` alone; waits for another process that holds it. A killed process lets go.

    The file stays behind, empty. Raises StorageError where the directory cannot be written.
    """
    with storage_errors(path.parent):
        handle = _open_lock(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def locked_now(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` alone where nobody else does: yields whether it is held. Waits for nobody. Raises
    StorageError where the directory cannot be written.
    """
    with storage_errors(path.parent):
        handle = _open_lock(path)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = True
        except BlockingIOError:
            is_held = False
        yield is_held
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file `path` now; no file is made where there is none."""
    if not path.exists():
        return False
    with locked_now(path) as is_held:
        return not is_held


def _open_lock(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def publish(partial: Path, final: Path) -> None:
    """Give a finished file or directory its final name, on disk for good when this returns.

    The contents must be synced before. A directory that is in the way is moved aside, and removed when the new one has
    its name: a process that is killed in between leaves both, and `recover` gives the old one its name again.
    """
    aside = _aside(final)
    if final.is_dir():
        remove(aside)
        final.rename(aside)
    partial.replace(final)
    sync(final.parent)
    remove(aside)


def recover(final: Path) -> None:
    """Clean up after a `publish` that was killed: what was moved aside comes back where nothing has its name, and goes
    where something has. Call it where no other process publishes.
    """
    aside = _aside(final)
    if aside.is_dir() and not final.exists():
        aside.rename(final)
        sync(final.parent)
    remove(aside)


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
    """Turn the system's errors of a write into a StorageError that says what to do."""
    try:
        yield
    except OSError as error:
        remedy = f"Make room there, or set {VARIABLE} to another directory."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{directory}: the disk is full ({_free(directory)} MB free). {remedy}") from error
        raise StorageError(f"{directory}: cannot be written: {error.strerror or error}. {remedy}") from error


def _free(directory: Path) -> int:
    try:
        return shutil.disk_usage(directory).free // 1_000_000
    except OSError:
        return 0
