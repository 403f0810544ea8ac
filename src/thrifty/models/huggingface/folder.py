"""A Hugging Face directory: which of its files hold weights, and its config."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from thrifty.errors import CheckpointError
from thrifty.models.compressed.layout import is_compressed, read_document
from thrifty.models.config.fields import Fields
from thrifty.models.config.huggingface import TOKEN_LIMIT, from_huggingface
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.huggingface.safetensors_file import read_json
from thrifty.models.quantised.config import read_method, without_method

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[^/\0]{1,200}\.safetensors")


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises CheckpointError with the way out where there are none."""
    if (directory / INDEX).is_file():
        names = sorted(set(weight_map(directory).values()))
        for name in names:
            if not (directory / name).is_file():
                raise CheckpointError(f"{directory / INDEX}: the file {name!r} is missing.")
        return [directory / name for name in names]
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    pickles = sorted(path.name for path in directory.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise CheckpointError(
            f"{directory} holds only pickles ({pickles[0]}), which can run code and are never loaded. "
            "Convert it once: transformers' from_pretrained(...).save_pretrained(...) writes safetensors."
        )
    models = sorted(path.name for path in directory.glob("*.gguf"))
    hint = f" It holds GGUF files: give one of them, such as {directory / models[0]}." if models else ""
    raise CheckpointError(f"{directory} holds neither {SINGLE} nor {INDEX}.{hint}")


def has_weights(directory: Path) -> bool:
    """Whether there are safetensors of a checkpoint in a folder."""
    return (directory / INDEX).is_file() or (directory / SINGLE).is_file()


def read_config(directory: Path) -> ModelConfig:
    """`config.json`, with the end-of-text ids of `generation_config.json` added where there is one.

    Raises ConfigError for what is not supported, a method of quantisation as well.
    """
    if is_compressed(directory):
        return read_document(directory).config
    data = read_json(directory / "config.json")
    read_method(data)
    config = from_huggingface(without_method(data))
    path = directory / "generation_config.json"
    if not path.is_file():
        return config
    generation = Fields(read_json(path), "generation_config.")
    ends = dict.fromkeys((*config.eos_ids, *generation.token_ids("eos_token_id", TOKEN_LIMIT)))
    starts = config.bos_ids or generation.token_ids("bos_token_id", TOKEN_LIMIT)
    return replace(config, eos_ids=tuple(ends), bos_ids=starts)


def weight_map(directory: Path) -> dict[str, str]:
    """The file of every tensor, by the index. Raises CheckpointError where it is no table of safetensors beside it."""
    path = directory / INDEX
    index = read_json(path)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{path}: weight_map is missing or not a table.")
    for tensor, name in names.items():
        if not isinstance(name, str) or Path(name).name != name or not _SHARD.fullmatch(name):
            given = f"weight_map gives {tensor!r:.80} the file {name!r:.80}"
            raise CheckpointError(f"{path}: {given}; it must be a safetensors file beside it.")
    return names
