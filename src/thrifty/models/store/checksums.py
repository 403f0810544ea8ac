"""Checksums of the parts of files, and what tells that files are the ones that were checked."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

_BLOCK = 1 << 20
_THREADS = 4
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Section:
    """A part of a file and its CRC-32 (zlib's: 4 GB/s a core). name: what a message calls it."""

    file: str
    name: str
    offset: int
    nbytes: int
    crc32: int

    def row(self) -> list[object]:
        """As a JSON list, in the order of the fields."""
        return list(astuple(self))


def damaged(directory: Path, sections: Sequence[Section]) -> list[str]:
    """The names of the sections whose bytes are not those of their checksum, or cannot be read; a few at a time."""
    from concurrent.futures import ThreadPoolExecutor

    handles = {name: os.open(directory / name, os.O_RDONLY) for name in {section.file for section in sections}}
    try:
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            sound = list(pool.map(lambda section: _is_sound(handles[section.file], section), sections))
    finally:
        for handle in handles.values():
            os.close(handle)
    return [section.name for section, is_sound in zip(sections, sound, strict=True) if not is_sound]


def _is_sound(handle: int, section: Section) -> bool:
    total, place, stop = 0, section.offset, section.offset + section.nbytes
    while place < stop:
        try:  # read, not mapped: a bad disk gives an error here, a signal there
            block = os.pread(handle, min(_BLOCK, stop - place), place)
        except OSError:
            return False
        if not block:
            return False
        total = zlib.crc32(block, total)
        place += len(block)
    return total == section.crc32


def file_states(directory: Path, beside: str) -> str:
    """One line for this boot, and one for every file but `beside` with what changes whenever its content does."""
    lines = [_boot()]
    with os.scandir(directory) as files:
        for file in sorted(files, key=lambda item: item.name):
            if file.name != beside:
                status = file.stat()
                times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
                lines.append(f"{file.name} {status.st_size} {times} {status.st_ino}")
    return "\n".join(lines) + "\n"


def _boot() -> str:
    """This boot's identity; empty where the system tells none, and then only changed files are checked again."""
    try:
        return _BOOT.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
