"""What a checkpoint's files are, and the keys of their content: whatever a loader reads is in one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from thrifty.models.gguf.split import part_files
from thrifty.models.store.content_key import combined, file_key

# A folder's files beside its weights: the config, the tokenizer, chat templates, whatever their names.
_DESCRIBING = ("*.json", "*.jinja", "*.model", "*.txt", "*/*.jinja")


@dataclass(frozen=True)
class CheckpointKey:
    """64 hexadecimal digits each. weights: of what decides the tensors. description: of all else that is read.
    content: of both.
    """

    weights: str
    description: str
    content: str


def checkpoint_key(path: Path) -> CheckpointKey:
    """The keys of a Hugging Face folder or a GGUF file. Raises CheckpointError for files that cannot be read."""
    if not path.is_dir():
        parts = part_files(path)
        key = file_key(path) if len(parts) == 1 else combined({part.name: file_key(part) for part in parts})
        return CheckpointKey(key, key, key)
    from thrifty.models.huggingface.folder import INDEX, weight_files

    weights = _keys(path, weight_files(path))
    describing = _keys(path, describing_files(path))
    deciding = {name: key for name, key in describing.items() if name in (INDEX, "config.json")}
    content = combined({**weights, **describing})
    return CheckpointKey(combined({**weights, **deciding}), combined(describing), content)


def describing_files(directory: Path) -> list[Path]:
    """The files of a folder that say what its weights mean and how text becomes tokens."""
    return sorted({file for pattern in _DESCRIBING for file in directory.glob(pattern) if file.is_file()})


def _keys(directory: Path, files: list[Path]) -> Mapping[str, str]:
    return {file.relative_to(directory).as_posix(): file_key(file) for file in files}
