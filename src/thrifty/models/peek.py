"""A model's config without its weights."""

from __future__ import annotations

import os
from pathlib import Path

from thrifty.errors import CheckpointError, nearest
from thrifty.models import hub
from thrifty.models.compressed.layout import is_compressed
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.embedded import MODELS, carried
from thrifty.models.huggingface.folder import has_weights, read_config
from thrifty.models.huggingface.safetensors_file import read_json
from thrifty.models.quantised.config import read_method


def is_quantised(folder: Path) -> bool:
    """Whether a folder holds weights in the codes of a method that its config names, which its config
    alone does not give the bytes of. Raises ConfigError for a method that is not read.
    """
    if is_compressed(folder):
        return True
    return read_method(read_json(folder / "config.json")) is not None and has_weights(folder)


def config_of(name_or_path: str | os.PathLike[str]) -> ModelConfig | None:
    """The config of a Hugging Face folder or hub id; of a hub id only its config.json is fetched.

    A folder needs no weights, only its config.json. None for GGUF files and for embedded models in such files, whose
    config lies in the same file as the weights: load those. Raises CheckpointError for a name that means nothing,
    DownloadError where the hub cannot be asked.
    """
    path, name = Path(name_or_path), os.fspath(name_or_path)
    if path.is_dir():
        return read_config(path)
    if name in MODELS and (folder := MODELS[name].folder) is not None:
        return read_config(carried(folder))
    if path.exists() or name in MODELS or ":" in name:
        return None
    if hub.is_hub_id(name):
        return read_config(hub.fetch_config(name))
    raise CheckpointError(
        f"{name!r} is neither a directory nor a .gguf file, an embedded model or a hub id 'owner/name'. "
        f"{nearest(name, MODELS)}"
    )
