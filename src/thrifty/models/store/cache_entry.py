"""An entry of the user's cache: a directory of files that is whole or absent, belongs to a key, and is checked.

Beside its files an entry has `index.json` (what it holds, behind a checksum of itself) and `checksums.json` (a CRC-32
of every part of its files). It appears by a rename when all of it is on disk, so whatever moment a process is killed
at, there is nothing or the whole. The content is checked when an entry is opened for the first time after a boot, or
after one of its files changed; `verified` remembers that, so that other starts read no byte for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from thrifty.errors import CheckpointError, ThriftyError
from thrifty.files import sync
from thrifty.models.store import cache_directory as cache
from thrifty.models.store.checksums import Section, damaged, file_states
from thrifty.version import VERSION

INDEX, CHECKSUMS, VERIFIED = "index.json", "checksums.json", "verified"
PARTIAL = ".partial"  # behind the name of an entry that is being written
OLD, LOCK = ".old", ".lock"  # behind the names of a replaced entry, and of the file that guards one
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contents:
    """What the writer of an entry returns: the body of its index, and the checksums of the files that it wrote."""

    body: Mapping[str, Any]
    sections: Sequence[Section]


@dataclass(frozen=True)
class CacheEntry:
    """An opened entry. body: as its writer returned it."""

    path: Path
    body: Mapping[str, Any]


def open_entry(kind: str, key: str, layout: int, write: Callable[[Path], Contents]) -> CacheEntry:
    """The entry of `kind` for a content key, made now by `write(directory)` where there is none yet.

    layout: the number of the writer's layout; an entry of another layout, or of another version of Thrifty, is made
    anew in its place. Two processes that make one take turns, and the second finds the work done. A damaged entry is
    made again, with a message. Raises what `write` raises, StorageError where the cache cannot be written.
    """
    root = cache.cache_directory() / kind
    final = root / f"{key[:32]}-{layout}"
    if (entry := _read(final, key)) is not None:
        return entry
    with cache.locked(lock_of(final)):
        if (entry := _read(final, key, quiet=True)) is not None:
            return entry
        _sweep(root)
        partial = root / f".{final.name}{PARTIAL}"
        try:
            with cache.storage_errors(root):
                cache.remove(partial)
                cache.remove(root / f".{final.name}.old")
                partial.mkdir()
                _write(partial, key, write)
                cache.publish(partial, final)
                for older in range(1, layout):
                    cache.remove(root / f"{key[:32]}-{older}")
        finally:
            cache.remove(partial)
    entry = _read(final, key)
    if entry is None:
        raise CheckpointError(f"{final}: what was converted could not be read back; check the disk")
    return entry


def entries(kind: str) -> list[Path]:
    """The directories of all entries of a kind that are there."""
    root = cache.cache_directory() / kind
    return sorted(path for path in root.glob("[!.]*") if path.is_dir()) if root.is_dir() else []


def unfinished(kind: str) -> list[Path]:
    """The directories that killed processes left of entries of a kind; those that somebody works on are not among
    them.
    """
    root = cache.cache_directory() / kind
    return sorted(path for path in root.glob(f".*{PARTIAL}") if not cache.is_locked(lock_of(path)))


def strays(kind: str) -> list[Path]:
    """What lies among the entries of a kind and is none: files, and what a killed process had moved aside. Lock files,
    and what somebody works on, are not among them.
    """
    root = cache.cache_directory() / kind
    return sorted(path for path in root.iterdir() if _is_stray(path)) if root.is_dir() else []


def _is_stray(path: Path) -> bool:
    hidden = path.name.startswith(".")
    if path.is_dir() and (not hidden or path.name.endswith(PARTIAL)):
        return False
    if hidden and path.name.endswith(OLD):
        return not cache.is_locked(lock_of(path.with_name(path.name.removesuffix(OLD))))
    return not (hidden and path.name.endswith(LOCK))


def lock_of(path: Path) -> Path:
    """The lock file of an entry, or of what is left of one."""
    return path.with_name(f".{path.name.removeprefix('.').removesuffix(PARTIAL)}.lock")


def fault(path: Path) -> str | None:
    """Why an entry will be made anew when it is asked for, as far as its index and the sizes of its files tell; None
    where it will be used.
    """
    try:
        index = _index((path / INDEX).read_bytes())
        _check_sizes(path, index)
        return None if index["thrifty"] == VERSION else f"made by Thrifty {index['thrifty']:.40}"
    except FileNotFoundError:
        return f"damaged: {INDEX} is missing"
    except (ThriftyError, OSError, ValueError, KeyError, TypeError) as error:
        return f"damaged: {error}"


def faults(path: Path) -> list[str]:
    """What is wrong with an entry, every byte of it read; empty where it is sound."""
    try:
        index = _index((path / INDEX).read_bytes())
        _check_sizes(path, index)
        return damaged(path, _sections(path, index))
    except (ThriftyError, OSError, ValueError, KeyError, TypeError) as error:
        return [str(error)]


def write_file(path: Path, content: bytes) -> None:
    """A new file with that content, on disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        finish(file)


def finish(file: BinaryIO) -> None:
    """All that was written to a file, on disk."""
    file.flush()
    os.fsync(file.fileno())


def _sweep(root: Path) -> None:
    """Remove what killed processes left of other entries, where nobody is working on them."""
    for partial in root.glob(f".*{PARTIAL}"):
        with cache.locked_now(lock_of(partial)) as is_held:
            if is_held:
                cache.remove(partial)


def _write(directory: Path, key: str, write: Callable[[Path], Contents]) -> None:
    contents = write(directory)
    sizes = {file.name: file.stat().st_size for file in directory.iterdir()}
    checksums = json.dumps([section.row() for section in contents.sections]).encode()
    index = {
        "key": key,
        "thrifty": VERSION,
        "files": sizes,
        "checksums": hashlib.sha256(checksums).hexdigest(),
        "body": contents.body,
    }
    body = json.dumps(index, ensure_ascii=False).encode("utf-8")
    write_file(directory / CHECKSUMS, checksums)
    write_file(directory / INDEX, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    _remember(directory)  # what is checked is what the disk gives back after the next boot
    sync(directory)


def _read(path: Path, key: str, quiet: bool = False) -> CacheEntry | None:
    """The entry at `path`; None where there is none, or none that can be used (said in a message unless `quiet`)."""
    try:
        raw = (path / INDEX).read_bytes()
        index = _index(raw)
        if index["key"] != key:
            raise CheckpointError(f"{INDEX} belongs to another checkpoint")
        if index["thrifty"] == VERSION:
            _check_sizes(path, index)
            _verify(path, index)
            return CacheEntry(path, index["body"])
        reason = f"was made by Thrifty {index['thrifty']:.40}, this is {VERSION}"
    except FileNotFoundError:
        return None
    except (ThriftyError, OSError, ValueError, KeyError, TypeError) as error:
        reason = f"is damaged ({error})"
    if not quiet:
        _LOG.warning("%s %s: converting again", path, reason)
    return None


def _index(raw: bytes) -> dict[str, Any]:
    checksum, _, body = raw.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise CheckpointError(f"the checksum of {INDEX} does not fit")
    index: dict[str, Any] = json.loads(body)
    return index


def _check_sizes(path: Path, index: Mapping[str, Any]) -> None:
    for name, size in index["files"].items():
        if not (path / name).is_file():
            raise CheckpointError(f"{name} is missing")
        if (path / name).stat().st_size != size:
            raise CheckpointError(f"{name} has a wrong size")


def _verify(path: Path, index: Mapping[str, Any]) -> None:
    """Check the content where nobody did since the last boot. A cache that cannot be written is never checked here: it
    could not be remembered, and every start would read everything.
    """
    if _is_verified(path) or not os.access(path, os.W_OK):
        return
    wrong = damaged(path, _sections(path, index))
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"wrong checksum of {', '.join(wrong[:3])}{more}")
    _remember(path)


def _sections(path: Path, index: Mapping[str, Any]) -> list[Section]:
    if not (path / CHECKSUMS).is_file():
        raise CheckpointError(f"{CHECKSUMS} is missing")
    raw = (path / CHECKSUMS).read_bytes()
    if hashlib.sha256(raw).hexdigest() != index["checksums"]:
        raise CheckpointError(f"the checksum of {CHECKSUMS} does not fit")
    return [Section(*row) for row in json.loads(raw)]


def _is_verified(path: Path) -> bool:
    try:
        return (path / VERIFIED).read_text("utf-8") == file_states(path, VERIFIED)
    except (OSError, UnicodeDecodeError):
        return False


def _remember(path: Path) -> None:
    """Write the file `verified`. One that is torn, or cannot be written, only means that the content is read again."""
    with contextlib.suppress(OSError):
        (path / VERIFIED).write_text(file_states(path, VERIFIED), "utf-8")
