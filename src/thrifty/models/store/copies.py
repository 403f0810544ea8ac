"""Converted copies in the user's cache: which checkpoints they are of, how large they are, and their removal."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from thrifty.errors import CheckpointError, StorageError, nearest
from thrifty.models import description
from thrifty.models.embedded import MODELS, find
from thrifty.models.store import cache_directory as cache
from thrifty.models.store import converted
from thrifty.models.store.cache_entry import entries

ORIGINS = "origins"  # folder of the cache: a file a checkpoint, named by its key, with the path that it was loaded from
KEY = 32  # digits of a key that an entry's name begins with
ALL = "all"


@dataclass(frozen=True)
class Copy:
    """path: of the entry. key: the first digits of its checkpoint's weights key. name: of an embedded model. origin:
    where the checkpoint was when it was last loaded, None where nobody wrote that down. nbytes: on the disk. current:
    whether this version's layout is in it; others are made anew when their model is loaded.
    """

    path: Path
    key: str
    nbytes: int
    current: bool
    name: str | None = None
    origin: Path | None = None

    @property
    def label(self) -> str:
        """What people call it."""
        return self.name or (self.key if self.origin is None else str(self.origin))


def remember(key: str, path: Path) -> None:
    """Write down where a checkpoint of that weights key lies, for the list. A cache that cannot be written forgets."""
    memory, place = cache.cache_directory() / ORIGINS / key[:KEY], str(path.resolve())
    with contextlib.suppress(OSError, UnicodeError, StorageError):
        if memory.is_file() and memory.read_text("utf-8") == place:
            return
        memory.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(memory, place)


def copies() -> list[Copy]:
    """All converted copies, the largest first."""
    found = [_copy(path) for path in entries(converted.KIND)]
    return sorted(found, key=lambda copy: -copy.nbytes)


def copy_of(path: Path) -> Copy | None:
    """The usable copy of a checkpoint by its path; None where there is none, or none that was loaded from there."""
    place = path.resolve()
    held = [copy for copy in copies() if copy.current]
    known = next((copy for copy in held if copy.name and copy.name in _named(place)), None)
    return known or next((copy for copy in held if copy.origin == place and _newer(copy.path, place)), None)


def _named(place: Path) -> list[str]:
    """The embedded models whose file this is, checked by its content."""
    models = [model for model in MODELS.values() if model.file == place.name]
    return [model.name for model in models if (held := find(model)) is not None and held.resolve() == place]


def matching(target: str) -> list[Copy]:
    """The copies that a word means: a model's name, the path of a checkpoint or of a copy, the beginning of a key, or
    `all`. Raises CheckpointError with the nearest known word where it means none.
    """
    found = copies()
    if target == ALL:
        return found
    place = Path(target).resolve()
    chosen = [
        copy
        for copy in found
        if target == copy.name
        or place in (copy.origin, copy.path.resolve())
        or (len(target) >= 6 and copy.path.name.startswith(target))
    ]
    if not chosen:
        known = [copy.name or copy.key for copy in found]
        more = nearest(target, known) if known else "There are no copies."
        raise CheckpointError(f"{target[:120]!r} names no converted copy. {more}")
    return chosen


def remove(copy: Copy) -> None:
    """Remove a copy, and what is kept of the same file beside its weights; the checkpoint itself stays. Waits for a
    process that is writing it; one that has it open keeps what it has. Raises StorageError where it cannot be removed.
    """
    beside = [path for path in entries(description.KIND) if path.name.startswith(copy.key)]
    for path in (copy.path, *beside):
        with cache.locked(path.parent / f".{path.name}.lock"), cache.storage_errors(path.parent):
            cache.remove(path)
        if path.exists():
            raise StorageError(f"{path} cannot be removed whole; look at its permissions")
    with contextlib.suppress(OSError):
        (cache.cache_directory() / ORIGINS / copy.key).unlink()


def _copy(path: Path) -> Copy:
    key, _, layout = path.name.rpartition("-")
    known = {model.sha256[:KEY]: name for name, model in MODELS.items() if model.folder is None}
    size = sum(file.stat().st_size for file in path.iterdir())
    return Copy(path, key, size, layout == str(converted.FORMAT), known.get(key), _origin(key))


def _origin(key: str) -> Path | None:
    try:
        return Path((cache.cache_directory() / ORIGINS / key).read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def _newer(entry: Path, checkpoint: Path) -> bool:
    """Whether a copy was made after all files of its checkpoint."""
    files = [checkpoint] if checkpoint.is_file() else [path for path in checkpoint.iterdir() if path.is_file()]
    try:
        made = (entry / converted.FILE).stat().st_mtime
        return all(file.stat().st_mtime <= made for file in files)
    except OSError:
        return False
