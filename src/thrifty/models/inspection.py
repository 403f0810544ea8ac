"""What a checkpoint is, from its headers: nothing is converted; of the weights one tensor of a type is read at most."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.errors import CheckpointError, nearest
from thrifty.formats.linear import CodebookLinear
from thrifty.models.compressed.layout import is_compressed
from thrifty.models.compressed.source import CompressedSource
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.embedded import MODELS, find
from thrifty.models.gguf.source import GGUFSource
from thrifty.models.huggingface.source import HuggingFaceSource
from thrifty.models.source import StoredTensor, Weight
from thrifty.models.store.cache_entry import INDEX
from thrifty.models.store.copies import Copy, copy_of
from thrifty.models.tokens.settings import TokenizerDefinition, TokenizerSettings

COMPRESSED = "compressed safetensors"  # what a file of `thrifty compress` is called


@dataclass(frozen=True)
class TypeFacts:
    """All tensors of one type. stored: the formats that they are loaded in, as labels. error: the relative root-mean-
    square difference between what is loaded and the file's values, the largest of all that were looked at; largest: the
    largest absolute one. looked: whether all were looked at, in a converted copy, or one alone.
    """

    type: str
    tensors: int
    parameters: int
    nbytes: int
    stored: tuple[str, ...]
    error: float
    largest: float
    looked: str

    @property
    def exact(self) -> bool:
        """Whether all values that were looked at are kept as they are."""
        return self.largest == 0.0


@dataclass(frozen=True)
class FileFacts:
    """path: as it was given or found. kind: "GGUF", "safetensors" or COMPRESSED. files: how many, of `nbytes` together.
    tensors: those that the decoder is made of. settings: of the tokenizer, None without one. special: its special
    tokens, ids and texts. copy: the converted one, if any.
    """

    path: Path
    kind: str
    architecture: str
    title: str
    files: int
    nbytes: int
    config: ModelConfig
    tensors: tuple[StoredTensor, ...]
    types: tuple[TypeFacts, ...]
    settings: TokenizerSettings | None
    special: Mapping[int, str]
    copy: Copy | None

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def inspect(name_or_path: str | os.PathLike[str]) -> FileFacts:
    """What a GGUF file, a Hugging Face folder or an embedded model is. Raises CheckpointError for anything else, for a
    file that is damaged, and for one that is not read (naming the tensor or field).
    """
    path = _located(name_or_path)
    copy = copy_of(path)
    if path.is_dir():
        folder = _folder(path)
        family = folder.config.family
        kind = COMPRESSED if isinstance(folder, CompressedSource) else "safetensors"
        return _facts(path, kind, family, path.name, folder.files, folder, copy)
    source = GGUFSource(path)
    files = source.file.paths
    title = source.file.metadata.text("general.name", path.stem)
    return _facts(path, "GGUF", source.file.architecture, title, files, source, copy)


def _folder(path: Path) -> HuggingFaceSource | CompressedSource:
    if is_compressed(path):
        return CompressedSource(path)
    from thrifty.models.tokens.files import read_tokenizer

    return HuggingFaceSource(path, read_tokenizer(path))


def _located(name_or_path: str | os.PathLike[str]) -> Path:
    path, name = Path(name_or_path), os.fspath(name_or_path)
    if path.exists():
        return path
    if name not in MODELS:
        raise CheckpointError(
            f"{name!r} is neither a directory nor a .gguf file, nor an embedded model. {nearest(name, MODELS)} "
            "A hub id is fetched by the command that runs it; give its folder then."
        )
    held = find(MODELS[name])
    if held is None:
        raise CheckpointError(f"'{name}' is not on this machine yet; get it with `thrifty pull {name}`")
    return held


def _facts(
    path: Path,
    kind: str,
    architecture: str,
    title: str,
    files: Sequence[Path],
    source: GGUFSource | HuggingFaceSource | CompressedSource,
    copy: Copy | None,
) -> FileFacts:
    tensors = source.stored()
    size = sum(file.stat().st_size for file in files)
    tokenizer = source.tokenizer
    settings, special = (None, {}) if tokenizer is None else (tokenizer.settings, _special(tokenizer))
    types = tuple(_types(tensors, source, copy))
    return FileFacts(
        path, kind, architecture, title, len(files), size, source.config, tuple(tensors), types, settings, special, copy
    )


def _special(tokenizer: TokenizerDefinition) -> dict[int, str]:
    """Ids and texts of the tokens that a text does not spell, in order."""
    added = json.loads(tokenizer.definition).get("added_tokens") or []
    return {token["id"]: token["content"] for token in added if token.get("special")}


def _types(
    tensors: Sequence[StoredTensor], source: GGUFSource | HuggingFaceSource | CompressedSource, copy: Copy | None
) -> Iterable[TypeFacts]:
    """By type and whether they are matrices, in the order of their bytes."""
    looked = "one tensor" if copy is None else "all tensors"
    seen: dict[str, list[tuple[str, float, float]]] = {}
    for kind, label, error, largest in map(_sampled, source.samples()) if copy is None else _of_copy(copy):
        seen.setdefault(kind, []).append((label, error, largest))
    groups: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.type, []).append(tensor)
    for kind, group in sorted(groups.items(), key=lambda item: -sum(tensor.nbytes for tensor in item[1])):
        known = seen.get(kind, [])
        labels = dict.fromkeys(label for label, _, _ in known)
        yield TypeFacts(
            kind,
            len(group),
            sum(math.prod(tensor.shape) for tensor in group),
            sum(tensor.nbytes for tensor in group),
            tuple(labels) or ("f32",),  # vectors alone
            max((error for _, error, _ in known), default=0.0),
            max((largest for _, _, largest in known), default=0.0),
            looked,
        )


def _sampled(weight: Weight) -> tuple[str, str, float, float]:
    return weight.origin, getattr(weight.value, "label", "f32"), weight.error, weight.largest_error


def _of_copy(copy: Copy) -> Iterable[tuple[str, str, float, float]]:
    """Of every matrix of a converted copy: its type in the checkpoint, its format here, and both errors."""
    body: Any = json.loads((copy.path / INDEX).read_bytes().partition(b"\n")[2])["body"]
    for weight in body["weights"]:
        meta = weight["meta"]
        if meta:
            yield weight["origin"], _label(meta), weight["error"], weight["largest_error"]


def _label(meta: dict[str, Any]) -> str:
    """What a stored linear is called, from its description alone."""
    for key in ("type", "dtype"):
        if key in meta:
            return str(meta[key]).lower()
    if "bits" not in meta:
        return str(meta["kind"])
    prefix = "table" if meta["kind"] == CodebookLinear.kind else "int"
    codes = meta.get("codebook") or f"{prefix}{meta['bits']}"
    return f"{codes}-g{meta['group']}"
