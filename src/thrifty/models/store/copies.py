"""Converted copies in the user's cache: which checkpoints they are of, how large they are, and their removal."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from thrifty.errors import CheckpointError, StorageError, nearest
from thrifty.files import replace_file
from thrifty.models import description
from thrifty.models.embedded import MODELS, find
from thrifty.models.store import cache_directory as cache
from thrifty.models.store import converted
from thrifty.models.store.cache_entry import OLD, PARTIAL, entries, fault, lock_of, strays, unfinished

ORIGINS = "origins"  # folder of the cache: a file a checkpoint, named by its key, with the path that it was loaded from
KEY = 32  # digits of a key that an entry's name begins with
ALL, UNUSABLE = "all", "unusable"
DIGITS = 6  # of a copy's name, at least, that mean it


@dataclass(frozen=True)
class Copy:
    """path: of the entry. key: the first digits of its checkpoint's weights key, "" for a stray file. name: of an
    embedded model. origin: where the checkpoint was when it was last loaded, None where nobody wrote that down. nbytes:
    on the disk. fault: why it cannot be used, None where it can; what cannot is made anew when its model is loaded.
    """

    path: Path
    key: str
    nbytes: int
    fault: str | None
    name: str | None = None
    origin: Path | None = None

    @property
    def label(self) -> str:
        """What people call it."""
        return self.name or (self.key or self.path.name if self.origin is None else str(self.origin))


def remember(key: str, path: Path) -> None:
    """Write down where a checkpoint of that weights key lies, for the list. A cache that cannot be written forgets."""
    memory, place = cache.cache_directory() / ORIGINS / key[:KEY], str(path.resolve())
    with contextlib.suppress(OSError, UnicodeError, StorageError):
        if memory.is_file() and memory.read_text("utf-8") == place:
            return
        memory.parent.mkdir(parents=True, exist_ok=True)
        replace_file(memory, place)


def copies() -> list[Copy]:
    """All converted copies, those included that killed processes left unfinished, and what lies among them and is no
    copy; the largest first.
    """
    paths = [*entries(converted.KIND), *unfinished(converted.KIND)]
    found = [*map(_copy, paths), *map(_stray, strays(converted.KIND))]
    return sorted(found, key=lambda copy: -copy.nbytes)


def copy_of(path: Path) -> Copy | None:
    """The usable copy of a checkpoint by its path; None where there is none, or none that was loaded from there."""
    place = path.resolve()
    held = [copy for copy in copies() if copy.fault is None]
    known = next((copy for copy in held if copy.name and copy.name in _named(place)), None)
    return known or next((copy for copy in held if copy.origin == place and _newer(copy.path, place)), None)


def _named(place: Path) -> list[str]:
    """The embedded models whose file this is, checked by its content."""
    models = [model for model in MODELS.values() if model.file == place.name]
    return [model.name for model in models if (held := find(model)) is not None and held.resolve() == place]


def matching(target: str) -> list[Copy]:
    """The copies that a word means: a model's name, the path of a checkpoint or of a copy, the beginning of a key, or
        `all`, or `unusable` for those that no model uses any more. A key's beginning has 6 digits at least. Raises
    CheckpointError with the nearest known word where it means none.
    """
    held = copies()
    if target in (ALL, UNUSABLE):
        return [copy for copy in held if target == ALL or copy.fault is not None]
    place = Path(target).resolve()
    chosen = [
        copy
        for copy in held
        if target == copy.name
        or place in (copy.origin, copy.path.resolve())
        or (len(target) >= DIGITS and copy.path.name.removeprefix(".").startswith(target.removeprefix(".")))
    ]
    if not chosen:
        known = [copy.name or copy.key for copy in held if copy.key]
        if 0 < len(target) < DIGITS and any(copy.key.startswith(target) for copy in held):
            raise CheckpointError(f"{target!r} is too short: give {DIGITS} digits of a copy's name at least")
        more = nearest(target, known) if known else "There are no copies."
        raise CheckpointError(f"{target[:120]!r} names no converted copy. {more}")
    return chosen


def remove(copy: Copy) -> None:
    """Remove a copy, and what is kept of the same file beside its weights; the checkpoint itself stays. Waits for a
    process that is writing it; one that has it open keeps what it has. Raises StorageError where it cannot be removed.
    """
    is_last = copy.key != "" and not any(other.key == copy.key for other in copies() if other.path != copy.path)
    beside = [path for path in entries(description.KIND) if path.name.startswith(copy.key)] if is_last else []
    for path in (copy.path, *beside):
        alone = cache.locked(lock_of(path)) if copy.key else contextlib.nullcontext()
        with alone, cache.storage_errors(path.parent):
            cache.remove(path)
        if path.exists():
            raise StorageError(f"{path} cannot be removed whole; look at its permissions")
    if is_last:
        with contextlib.suppress(OSError):
            (cache.cache_directory() / ORIGINS / copy.key).unlink()


def _copy(path: Path) -> Copy:
    key, _, layout = path.name.removeprefix(".").removesuffix(PARTIAL).rpartition("-")
    known = {model.sha256[:KEY]: name for name, model in MODELS.items() if model.folder is None}
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return Copy(path, key, size, _fault(path, layout), known.get(key), _origin(key))


def _stray(path: Path) -> Copy:
    """What is no copy, and no part of one."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    size = sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())
    what = "left behind: its copy was made anew" if path.name.endswith(OLD) else "no copy: nothing uses it"
    return Copy(path, "", size, what)


def _fault(path: Path, layout: str) -> str | None:
    if path.name.endswith(PARTIAL):
        return "unfinished: its conversion was killed"
    return fault(path) if layout == str(converted.FORMAT) else "of another version"


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
