"""Measured importance of a model's attention heads, kept beside its checkpoint.

One file a kind of probe, JSON: the scores with the checkpoint's version, the probe's settings and the date. Where the
checkpoint's folder cannot be written, or belongs to a Python package, the file lies in Thrifty's cache directory.
Techniques on weights change no head's work, so a compressed model reads its checkpoint's scores.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thrifty.arrays import Floats
from thrifty.errors import CheckpointError
from thrifty.files import replace_file
from thrifty.models.checked_text import parse_json
from thrifty.models.store.cache_directory import cache_directory, storage_errors

if TYPE_CHECKING:
    from thrifty.models.model import Model

KINDS: Mapping[str, str] = {
    "r": "retrieval: the head's strongest look goes to the needle's token that the model says next",
    "r2": "retrieval and reasoning: the head's attention to the right one of two answers",
    "kvzip": "repeating: the most that the head attends to any token while the model repeats two sample texts",
}
PROBES: Mapping[str, str] = {"r": "d06607ca", "r2": "1267cb86", "kvzip": "6cf34c9b"}
"""A digest of each probe's questions and rules: part of the file's name, so that scores of others are never read.

`tests/unit/evaluation/test_probe_words.py` makes it, and says what to write here when a probe changes."""
LARGEST_FILE = 64 << 20


@dataclass(frozen=True, kw_only=True)
class HeadScores:
    """What a probe found. scores: [global layers][query heads] ≥ 0, not all 0. layers: the global layers' numbers.

    version: of the checkpoint. asked, used: questions, and those that the model answers. settings: of the probe.
    """

    kind: str
    version: str
    layers: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]
    asked: int
    used: int
    settings: Mapping[str, Any]
    date: str

    def array(self) -> Floats:
        """fp32 [global layers, heads]."""
        return np.array(self.scores, np.float32)


class SavedScores(Mapping[str, Floats]):
    """A model's saved scores by kind, [global layers, heads] fp32, read when they are first asked for.

    Raises CheckpointError, naming file and field, for a file that is not what it should be.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._read: dict[str, Floats] = {}

    def __getitem__(self, kind: str) -> Floats:
        if kind not in self._read:
            scores = read(self._model, kind) if kind in KINDS else None
            if scores is None:
                raise KeyError(kind)
            self._read[kind] = scores.array()
        return self._read[kind]

    def __iter__(self) -> Iterator[str]:
        return (kind for kind in KINDS if find(self._model, kind) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def checkpoint_version(model: Model) -> str:
    """The version of the checkpoint that a model was made of."""
    return model.version.partition("+")[0]


def places(model: Model, kind: str) -> list[Path]:
    """Where the scores may lie: beside the checkpoint, unless that is part of a Python package, then in the cache
    directory. The ending is none that a checkpoint's own files have, so that its content key does not change.
    """
    key = hashlib.sha256(checkpoint_version(model).encode()).hexdigest()[:16]
    name = f"thrifty-{key}.{kind}-{PROBES[kind]}-heads"
    paths = [cache_directory() / "heads" / name]
    if model.path is not None:
        folder = model.path if model.path.is_dir() else model.path.parent
        if not _in_package(folder):
            paths.insert(0, folder / name)
    return paths


def _in_package(folder: Path) -> bool:
    """Whether a folder belongs to an installed package: what is written there an upgrade would drop or trip over."""
    return any((place / "__init__.py").is_file() for place in (folder, folder.parent))


def find(model: Model, kind: str) -> Path | None:
    """The file of a model's scores, None where there is none."""
    return next((path for path in places(model, kind) if path.is_file()), None)


def read(model: Model, kind: str) -> HeadScores | None:
    """A model's saved scores, None where there are none. Raises CheckpointError."""
    path = find(model, kind)
    if path is None:
        return None
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise CheckpointError(f"larger than {LARGEST_FILE >> 20} MiB")
        document = parse_json(path.read_bytes(), path)
    except (OSError, CheckpointError) as error:
        raise CheckpointError(f"{path}: cannot be read as scores of heads ({error}): remove it") from error
    return _checked(path, document, model, kind)


def save(model: Model, scores: HeadScores) -> Path:
    """Write the scores, atomically; returns where. Raises StorageError where no place can be written."""
    text = json.dumps(asdict(scores), ensure_ascii=False)
    *beside, cached = places(model, scores.kind)
    for path in beside:
        if os.access(path.parent, os.W_OK):
            with storage_errors(path.parent):
                replace_file(path, text)
            return path
    with storage_errors(cached.parent):
        cached.parent.mkdir(parents=True, exist_ok=True)
        replace_file(cached, text)
    return cached


def _checked(path: Path, document: Any, model: Model, kind: str) -> HeadScores:
    def refuse(field: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"{path}: field '{field}' must be {wanted}; remove the file and make it again")

    config = model.config
    layers = [index for index, layer in enumerate(config.layers) if layer.keeps_all]
    known = [field.name for field in fields(HeadScores)]
    if not isinstance(document, dict) or set(document) != set(known):
        raise CheckpointError(f"{path}: its fields must be {', '.join(known)}; remove the file and make it again")
    if document["kind"] != kind:
        raise refuse("kind", repr(kind))
    if document["version"] != checkpoint_version(model):
        raise refuse("version", "that of the checkpoint beside it")
    if document["layers"] != layers:
        raise refuse("layers", f"the model's {len(layers)} global layers")
    heads = max((config.widths(layer)[0] for layer in layers), default=config.heads)
    if not _numbers(document["scores"], len(layers), heads):
        raise refuse("scores", f"{len(layers)} rows of {heads} numbers ≥ 0, not all of them 0")
    rows = tuple(tuple(map(float, row)) for row in document["scores"])
    return HeadScores(**(document | {"layers": tuple(layers), "scores": rows}))


def _numbers(rows: Any, count: int, width: int) -> bool:
    if not isinstance(rows, list) or len(rows) != count:
        return False
    if not all(isinstance(row, list) and len(row) == width for row in rows):
        return False
    flat = [score for row in rows for score in row]
    if not all(isinstance(score, int | float) and math.isfinite(score) and score >= 0 for score in flat):
        return False
    return any(score > 0 for score in flat)
