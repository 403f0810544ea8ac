"""An open GGUF file, one or several parts: its metadata, its tensors, and their bytes.

Files are mapped, never read whole.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thrifty.errors import CheckpointError
from thrifty.models.gguf.header import DEFAULT_ALIGNMENT, Cursor, TensorInfo
from thrifty.models.gguf.metadata import Metadata
from thrifty.models.gguf.split import MAX_PARTS, first_part, part_names


class _Part:
    """One mapped file: its metadata, and where its tensors lie."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.map = _map_file(path)
        cursor = Cursor(self.map, path)
        tensors, entries = cursor.preamble()
        self.metadata = Metadata(path, dict(cursor.entries(entries)))
        alignment = self.metadata.integer("general.alignment", DEFAULT_ALIGNMENT, minimum=8, maximum=1 << 20)
        if alignment & (alignment - 1):
            cursor.fail(f"'general.alignment' is {alignment}, not a power of two")
        self.tensors = cursor.tensors(tensors, alignment)

    @property
    def count(self) -> int:
        """How many parts the model has."""
        return max(1, self.metadata.integer("split.count", 1, maximum=MAX_PARTS))

    @property
    def number(self) -> int:
        """Which of them this is, from 1."""
        return 1 + self.metadata.integer("split.no", 0, maximum=MAX_PARTS)


class GGUF:
    """An open GGUF model: `metadata`, `tensors` by name, and the bytes of each tensor as views of the mapped file.

    path: the file, or the first of several parts; the others are read beside it. Raises CheckpointError for anything
    in a header that does not add up, and for a part that is missing or of another model.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        first = _Part(self.path)
        self.metadata = first.metadata
        self._parts: dict[str, _Part] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for part in [first] if first.count == 1 else _all_parts(first):
            for name, info in part.tensors.items():
                if name in self.tensors:
                    raise CheckpointError(
                        f"{part.path}: tensor '{name[:80]}' is also in {self._parts[name].path.name}; "
                        "give the parts of one model"
                    )
                self.tensors[name], self._parts[name] = info, part
        total = self.metadata.integer("split.tensors.count", len(self.tensors))
        if first.count > 1 and total != len(self.tensors):
            raise CheckpointError(
                f"{self.path}: 'split.tensors.count' is {total}, but the {first.count} parts hold "
                f"{len(self.tensors)} tensors; fetch them again"
            )

    @property
    def architecture(self) -> str:
        """`general.architecture`, such as "llama"."""
        return self.metadata.text("general.architecture")

    @property
    def paths(self) -> list[Path]:
        """The files: one, or all parts in order."""
        return list(dict.fromkeys([self.path, *(part.path for part in self._parts.values())]))

    def rows(self, name: str) -> npt.NDArray[np.uint8]:
        """The raw bytes of a tensor as [rows, row_bytes] uint8, a read-only view of the mapped file.

        All dimensions but the last are folded into rows. Raises CheckpointError where there is no such tensor.
        """
        info = self.tensor(name)
        flat = np.frombuffer(self._parts[name].map, dtype=np.uint8, count=info.nbytes, offset=info.offset)
        return flat.reshape(-1, info.row_bytes)

    def tensor(self, name: str) -> TensorInfo:
        """The entry of one tensor. Raises CheckpointError where it is missing."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: tensor '{name}' is missing")
        return self.tensors[name]

    def forget(self, name: str, first: int = 0, last: int | None = None) -> None:
        """Tell the system that the pages of a tensor, or of its rows first:last, are not needed again soon, so that
        they leave the process.
        """
        info = self.tensor(name)
        begin = info.offset + first * info.row_bytes
        end = info.offset + (info.nbytes if last is None else last * info.row_bytes)
        start = begin - begin % mmap.PAGESIZE
        self._parts[name].map.madvise(mmap.MADV_DONTNEED, start, end - start)


def _all_parts(first: _Part) -> list[_Part]:
    """The first part and those beside it, in order."""
    path, count = first.path, first.count
    if first.number > 1:
        name = first_part(path.name)
        which = f"the first one, {name}" if name else f"the file of the first one, NAME-00001-of-{count:05d}.gguf"
        raise CheckpointError(f"{path}: part {first.number} of a split GGUF of {count} parts; give {which}")
    names = part_names(path.name)
    if len(names) != count:
        raise CheckpointError(
            f"{path}: one part of a split GGUF ('split.count' is {count}), but it is not called "
            f"NAME-00001-of-{count:05d}.gguf; give all parts such names, so that they are found"
        )
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {count} parts {'is' if len(missing) == 1 else 'are'} missing: "
            f"{', '.join(missing[:5])}; put them beside it"
        )
    return [first, *(_later_part(path.with_name(name), place, count) for place, name in enumerate(names[1:], 2))]


def _later_part(path: Path, number: int, count: int) -> _Part:
    part = _Part(path)
    if (part.number, part.count) != (number, count):
        raise CheckpointError(
            f"{path}: part {part.number} of {part.count} by 'split.no' and 'split.count', but part {number} of {count} "
            "by its name; give it its own name back"
        )
    return part


def _map_file(path: Path) -> mmap.mmap:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                reason = "is too short for a GGUF header (24 bytes); download it again"
                raise CheckpointError(f"{path}: {size} bytes {reason}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
