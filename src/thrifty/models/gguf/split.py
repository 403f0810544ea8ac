"""The names of a GGUF model's parts: NAME-00001-of-00003.gguf and so on."""

from __future__ import annotations

import re
from pathlib import Path

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
MAX_PARTS = 1 << 14


def part_names(first: str) -> list[str]:
    """The names of all parts, given the first one's; the name alone where it is no first part's."""
    match = _PART.fullmatch(first)
    if match is None or int(match[2]) != 1 or not 1 < int(match[3]) <= MAX_PARTS:
        return [first]
    return [f"{match[1]}-{number:05d}-of-{match[3]}.gguf" for number in range(1, int(match[3]) + 1)]


def first_part(name: str) -> str | None:
    """The name of the first part, given that of a later one; None where it is none."""
    match = _PART.fullmatch(name)
    if match is None or not 1 < int(match[2]) <= int(match[3]):
        return None
    return f"{match[1]}-00001-of-{match[3]}.gguf"


def part_files(path: Path) -> list[Path]:
    """The files that a GGUF model is read from, as far as they are there."""
    return [path, *(part for name in part_names(path.name)[1:] if (part := path.with_name(name)).is_file())]
