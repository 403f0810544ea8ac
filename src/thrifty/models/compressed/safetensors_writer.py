"""Writing a safetensors file array by array, each at a multiple of 64 bytes, with the file's SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from thrifty.arrays import Array
from thrifty.formats.gguf import ArrayShape
from thrifty.models.compressed.layout import PADDING
from thrifty.models.store.converted_file import ALIGNMENT, nbytes
from thrifty.models.store.stored_weights import dtype_name
from thrifty.storage.process import let_go

_PIECE = 8 << 20  # bytes of one write


def write_safetensors(
    path: Path,
    shapes: Mapping[str, ArrayShape],
    arrays: Iterable[tuple[str, Array]],
    metadata: Mapping[str, str],
    alignment: int = ALIGNMENT,
) -> str:
    """A new file with the arrays that `shapes` announces, in that order; it is on the disk when this returns.

    arrays: their names and values, asked for one at a time; what is mapped from a file leaves the process. Between two
    of them lie arrays called "padding.N" where the next would not begin at a multiple of `alignment` bytes. Returns the
    SHA-256 of the file. Raises OSError.
    """
    header = _header(shapes, metadata, alignment)
    digest, wanted = hashlib.sha256(header), iter(shapes.items())
    with path.open("wb") as file:
        file.write(header)
        for name, array in arrays:
            expected, (shape, dtype) = next(wanted)
            assert (name, array.shape, array.dtype) == (expected, shape, dtype), name
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            for start in range(0, len(content), _PIECE):
                piece = content[start : start + _PIECE]
                digest.update(piece.data)
                file.write(piece.data)
                let_go((piece,))
            gap = bytes(-len(content) % alignment)
            digest.update(gap)
            file.write(gap)
        assert next(wanted, None) is None, "all arrays were given"
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def file_bytes(shapes: Mapping[str, ArrayShape], metadata: Mapping[str, str]) -> int:
    """Bytes of the file that `write_safetensors` makes."""
    return len(_header(shapes, metadata, ALIGNMENT)) + sum(
        -(-nbytes(shape) // ALIGNMENT) * ALIGNMENT for shape in shapes.values()
    )


def _header(shapes: Mapping[str, ArrayShape], metadata: Mapping[str, str], alignment: int) -> bytes:
    """The length and the table of all arrays, with spaces behind it so that the first one is aligned."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for place, (name, shape) in enumerate(shapes.items()):
        start, end = end, end + nbytes(shape)
        table[name] = {
            "dtype": dtype_name(shape[1]).upper(),
            "shape": list(shape[0]),
            "data_offsets": [start, end],
        }
        gap = -end % alignment
        if gap:
            table[f"{PADDING}{place}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
            end += gap
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
