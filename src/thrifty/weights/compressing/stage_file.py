"""The results of one technique on the disk, as they are made: a file of arrays, and a journal beside it.

A unit (see `weights.results`) counts when its line is in the journal; the line is written when the arrays are on the
disk. What a killed process left behind the last whole line is written over.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.arrays import Array, Bytes
from thrifty.formats.linear import PackedLinear
from thrifty.models.model import TensorReport
from thrifty.models.store.stored_weights import dtype_name, read_weight
from thrifty.storage.mapped_file import MappedFile
from thrifty.weights.results import Result

ALIGNMENT = 4096  # so that arrays are whole pages, which can leave the process
_GROWTH = 256 << 20  # bytes that the file becomes longer by; pages that nobody wrote take no room


class StageFile:
    """Arrays in `PATH.bin`, lines in `PATH.jsonl`. Results that are read are views of the file.

    whole: what `finish` was told, None before. Raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.whole: dict[str, Any] | None = None
        self._units: dict[str, list[dict[str, Any]]] = {}
        self._pending: dict[str, list[dict[str, Any]]] = {}
        self._file = os.open(path.with_suffix(".bin"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._end, self._data = 0, np.empty(0, np.uint8)
        self._shared: dict[tuple[int, int], list[dict[str, Any]]] = {}  # places by checksum and bytes
        self._read_journal()

    @property
    def unit_names(self) -> list[str]:
        """Those that are whole, in the order in which they were made."""
        return list(self._units)

    def of(self, unit: str) -> list[Result] | None:
        """The results of a unit; None where there are none."""
        entries = self._units.get(unit)
        return None if entries is None else [self._result(entry) for entry in entries]

    def keep(self, unit: str, result: Result) -> Result:
        """Write a result. What is returned is read from the file where it is used."""
        value = result.value
        state = value.state() if isinstance(value, PackedLinear) else {"value": np.asarray(value, np.float32)}
        shared = value.shared if isinstance(value, PackedLinear) else ()
        entry = {
            "name": result.name,
            "meta": value.meta() if isinstance(value, PackedLinear) else None,
            "tensors": {key: self._write(array, key in shared) for key, array in state.items()},
            "report": None if result.report is None else asdict(result.report),
        }
        self._pending.setdefault(unit, []).append(entry)
        return self._result(entry)

    def close(self, unit: str) -> None:
        """A unit is whole: from now on it counts."""
        entries = self._pending.pop(unit, [])
        self._append({"unit": unit, "weights": entries})
        self._units[unit] = entries

    def finish(self, facts: dict[str, Any]) -> None:
        """The technique is done."""
        self._append({"whole": facts})
        self.whole = facts

    def shut(self) -> None:
        """Nothing more is written."""
        os.close(self._file)

    def _read_journal(self) -> None:
        """Take over what is whole, and cut off what follows it."""
        journal, good = self.path.with_suffix(".jsonl"), 0
        raw = journal.read_bytes() if journal.is_file() else b""
        size = os.fstat(self._file).st_size
        for line in raw.splitlines(keepends=True):
            entry = _parsed(line)
            if entry is None or not self._take(entry, size):
                break
            good += len(line)
        if good < len(raw):
            with journal.open("r+b") as file:
                file.truncate(good)

    def _take(self, entry: dict[str, Any], size: int) -> bool:
        """Whether a line of the journal is what the file holds; then it counts."""
        if "whole" in entry:
            self.whole = entry["whole"]
            return True
        places = [place for weight in entry["weights"] for place in weight["tensors"].values()]
        if any(place["offset"] + place["nbytes"] > size or self._crc32(place) != place["crc32"] for place in places):
            return False
        self._end = max([self._end, *(place["offset"] + place["nbytes"] for place in places)])
        self._units[entry["unit"]] = entry["weights"]
        return True

    def _crc32(self, place: Mapping[str, Any]) -> int:
        total, start, stop = 0, place["offset"], place["offset"] + place["nbytes"]
        while start < stop:
            block = os.pread(self._file, min(1 << 20, stop - start), start)
            if not block:
                break
            total, start = zlib.crc32(block, total), start + len(block)
        return total

    def _write(self, array: Array, shared: bool) -> dict[str, Any]:
        """Where the array lies in the file; shared: an equal one may lie there already."""
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        crc32, written = zlib.crc32(content), 0
        same = self._shared.setdefault((crc32, len(content)), []) if shared else []
        for place in same:
            if place["shape"] == list(array.shape) and self._read(place) == content:
                return place
        start = -(-self._end // ALIGNMENT) * ALIGNMENT
        while written < len(content):
            written += os.pwrite(self._file, content[written : written + (32 << 20)], start + written)
        self._end = start + len(content)
        place = {"dtype": dtype_name(array.dtype), "shape": list(array.shape), "offset": start}
        place |= {"nbytes": len(content), "crc32": crc32}
        same.append(place)
        return place

    def _read(self, place: Mapping[str, Any]) -> bytes:
        return os.pread(self._file, place["nbytes"], place["offset"])

    def _append(self, line: dict[str, Any]) -> None:
        os.fsync(self._file)
        with self.path.with_suffix(".jsonl").open("ab") as journal:
            journal.write(_line(line))
            journal.flush()
            os.fsync(journal.fileno())

    def _result(self, entry: Mapping[str, Any]) -> Result:
        beside = {"origin": "", "error": 0.0, "largest_error": 0.0}
        weight = read_weight({**entry, **beside}, self._content(), self.path.name)
        report = entry["report"]
        return Result(entry["name"], weight.value, None if report is None else TensorReport(**report))

    def _content(self) -> Bytes:
        """The file as far as it was written, mapped. It is made longer first: a mapping does not grow with its file."""
        if len(self._data) < self._end:
            os.ftruncate(self._file, -(-self._end // _GROWTH) * _GROWTH)
            self._data = MappedFile(self.path.with_suffix(".bin")).content
        return self._data


def _line(value: dict[str, Any]) -> bytes:
    """A line of the journal, behind the checksum of its text."""
    text = json.dumps(value).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """What a line says; None for one that is torn."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    with suppress(ValueError):
        if line.endswith(b"\n") and int(checksum, 16) == zlib.crc32(text):
            value: dict[str, Any] = json.loads(text)
            return value
    return None
