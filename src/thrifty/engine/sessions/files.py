"""Files of sessions: facts and arrays behind a checksum, written whole or not at all.

    MAGIC · length of the header (8 bytes, little-endian) · header (JSON) · arrays, one after the other · SHA-256 of all

The header lists the arrays' names, types, shapes and places. A file that is torn or was changed is refused by the
checksum before anything in it is believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.arrays import Array
from thrifty.errors import SessionError
from thrifty.files import sync

MAGIC = b"THRIFTY SESSION 1\n"
CODE = "session_file"
TYPES = ("uint8", "int32", "int64", "float32")
HEADER = 64 << 20
"""Most bytes of a header."""


def file_of(folder: Path, name: str, salt: str) -> Path:
    """The file of a session: names are quoted, salts are not told. No quoted name has a plus sign, so that none is
    taken for a salt and a name, nor for the digest of a long name.
    """
    quoted = urllib.parse.quote(name, safe=" ")
    if len(quoted) > 160:
        quoted = f"+{hashlib.sha256(name.encode()).hexdigest()}"
    owner = f"{salt_key(salt)[:16]}+" if salt else ""
    return folder / f"{owner}{quoted}.session"


def salt_key(salt: str) -> str:
    """What a file tells of a salt."""
    return hashlib.sha256(salt.encode()).hexdigest()


def write(path: Path, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> int:
    """Write a file so that a kill leaves the old one or the new one; on disk when this returns. Returns its bytes.

    Raises SessionError, with nothing changed, where the folder cannot be written.
    """
    places, offset = {}, 0
    for name, own in arrays.items():
        places[name] = [str(own.dtype), list(own.shape), offset]
        offset += own.nbytes
    header = json.dumps({"facts": facts, "arrays": places}, separators=(",", ":")).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        try:
            digest = hashlib.sha256()
            with os.fdopen(handle, "wb") as file:
                for part in (MAGIC, len(header).to_bytes(8, "little"), header, *arrays.values()):
                    data = (
                        part if isinstance(part, bytes) else np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
                    )
                    digest.update(data)
                    file.write(data)
                file.write(digest.digest())
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise SessionError(
            f"cannot write the session to '{path.name}': {error.strerror}. Free some space or give another folder", CODE
        ) from error
    return size


def read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Facts and arrays of a file. Raises SessionError that names the file and what is wrong with it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        code = "session_not_found" if missing else CODE
        raise SessionError(f"cannot read the session file '{path.name}': {error.strerror}", code) from error
    if not content.startswith(MAGIC):
        raise refused(path, "it is no session file of this version")
    body, checksum = memoryview(content)[:-32], content[-32:]
    if len(body) < len(MAGIC) + 8 or hashlib.sha256(body).digest() != checksum:
        raise refused(path, "its checksum is wrong: it is torn, or was changed")
    first = len(MAGIC) + 8
    length = int.from_bytes(body[len(MAGIC) : first], "little")
    if length > min(HEADER, len(body) - first):
        raise refused(path, f"its header of {length} bytes is longer than the file")
    try:
        header = json.loads(bytes(body[first : first + length]))
        arrays = {str(name): _array(body, first + length, *place) for name, place in dict(header["arrays"]).items()}
        return dict(header["facts"]), arrays
    except (ValueError, KeyError, TypeError) as error:
        raise refused(path, f"its header does not do ({error})") from error


def refused(path: Path, reason: str) -> SessionError:
    """The error for a file that is not used."""
    return SessionError(f"the session file '{path.name}' is refused: {reason}. Delete it, or begin a new session", CODE)


def _array(body: memoryview, base: int, dtype: str, shape: list[int], offset: int) -> Array:
    if dtype not in TYPES or offset < 0 or any(size < 0 for size in shape):
        raise ValueError(f"an array of {dtype!r:.20} at {offset}")
    count = int(np.prod(shape, dtype=np.int64)) if shape else 1
    found: Array = np.frombuffer(body, dtype, count, base + offset).reshape(shape)
    return found
