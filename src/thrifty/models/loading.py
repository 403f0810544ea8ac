"""One door to every model: a directory, a GGUF file, an embedded model's name, or a hub id."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

from thrifty.errors import CheckpointError, KernelError, ThriftyWarning, nearest
from thrifty.formats.linear import PackedLinear
from thrifty.kernels.threads import pool_threads
from thrifty.models.assembly import Assembly
from thrifty.models.compressed.layout import is_compressed
from thrifty.models.compressed.source import CompressedSource
from thrifty.models.description import Description, open_description
from thrifty.models.embedded import MODELS, find
from thrifty.models.model import Model, TensorReport
from thrifty.models.source import DType, Files, Source, Weight, stored_bytes
from thrifty.models.store.checkpoint_key import CheckpointKey, checkpoint_key
from thrifty.models.store.converted import open_converted
from thrifty.models.store.converted_file import Fits, Progress
from thrifty.models.store.copies import remember
from thrifty.models.tokens.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)

MAX_THREADS = 1024


def load(
    name_or_path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    copy: bool = True,
    progress: Progress | None = None,
    fits: Fits | None = None,
) -> Model:
    """A model, ready to answer: the checkpoint's own numbers in packed form, converted once and mapped into memory.

    name_or_path: a Hugging Face directory, one that `thrifty compress` wrote, a `.gguf` file, the name of an embedded
    model, or a hub id "owner/name". threads: of the native kernels. copy: False keeps no converted copy on the disk:
    what lies in the file as kernels read it is mapped, all else is converted in memory at every start; of a compressed
    directory none is made in any case. progress: told how far a conversion is. fits: told the bytes of all weights
    before any is converted; what it raises is raised then.

    Raises CheckpointError (ConfigError for a config) naming the file and field, DownloadError for a model that could
    not be fetched, StorageError where a copy has no room.
    """
    _set_threads(threads)
    path = resolve(name_or_path)
    key = checkpoint_key(path)
    if is_compressed(path):
        tokenizer, model = _open_compressed(path, key, copy, fits)
    elif copy:
        remember(key.weights, path)
        converted = open_converted(key, lambda: open_source(path), progress, fits)
        tokenizer = _lazy_tokenizer(converted.description)
        model = assemble(converted)
        model.file = converted.file
    else:
        source = open_source(path)
        if fits is not None:
            fits(stored_bytes(source))
        tokenizer, model = _tokenizer(source), assemble(source)
    warn_of(path, tokenizer)
    model.version, model.tokenizer, model.path = key.content, tokenizer, path
    return model


def _open_compressed(path: Path, key: CheckpointKey, copy: bool, fits: Fits | None) -> tuple[Tokenizer | None, Model]:
    """A folder that `thrifty compress` wrote, mapped as it lies there: no copy of its weights is made. copy: whether
    its description is kept, so that the tokenizer is read when it is first used.
    """
    source = CompressedSource(path)
    if fits is not None:
        fits(stored_bytes(source))
    model = assemble(source)
    model.file, model.applied = source.file, source.document.recipe
    return _lazy_tokenizer(open_description(key.description, lambda: source)) if copy else _tokenizer(source), model


def load_plain(name_or_path: str | os.PathLike[str], dtype: DType) -> Model:
    """A model of plain linears, float32 or bfloat16, with the checkpoint's exact values: nothing is packed or kept on
    disk. name_or_path and errors as in `load`.
    """
    path = resolve(name_or_path)
    key, source = checkpoint_key(path), open_source(path)
    tokenizer = _tokenizer(source)
    warn_of(path, tokenizer)
    model = assemble(source, dtype)
    model.version, model.tokenizer, model.path = f"{key.content}-{dtype.name}", tokenizer, path
    return model


def assemble(source: Source, dtype: DType | None = None) -> Model:
    """The model of an opened checkpoint, without a tokenizer; each part is kept as it comes."""
    assembly, report = Assembly(source.config), []
    for weight in source.weights(dtype):
        assembly.put(weight.name, weight.value)
        report.append(_report(weight))
    linears, norms = assembly.finish()
    return Model(source.config, linears, norms, report=report)


def _report(weight: Weight) -> TensorReport:
    value = weight.value
    if not isinstance(value, PackedLinear):
        return TensorReport(weight.name, "f32", weight.origin, value.nbytes)
    return TensorReport(weight.name, value.label, weight.origin, value.nbytes, weight.error, weight.largest_error)


def open_source(path: Path) -> Files:
    """The checkpoint of a folder or a GGUF file, opened and checked; no weight is read yet."""
    if not path.is_dir():
        from thrifty.models.gguf.source import GGUFSource

        return GGUFSource(path)
    if is_compressed(path):
        return CompressedSource(path)
    from thrifty.models.huggingface.source import HuggingFaceSource
    from thrifty.models.tokens.files import read_tokenizer

    return HuggingFaceSource(path, read_tokenizer(path))


def _tokenizer(source: Source) -> Tokenizer | None:
    """The tokenizer of an opened checkpoint."""
    definition = source.tokenizer
    return None if definition is None else Tokenizer(definition.definition, definition.settings)


def _lazy_tokenizer(description: Description) -> Tokenizer | None:
    """A tokenizer that reads its definition when it is first used."""
    settings = description.settings
    return None if settings is None else Tokenizer(description.definition, settings)


def warn_of(path: Path, tokenizer: Tokenizer | None) -> None:
    """Say what was guessed or put right in a checkpoint's tokenizer, as ThriftyWarning."""
    for text in () if tokenizer is None else tokenizer.settings.warnings:
        warnings.warn(f"{path.name}: {text}", ThriftyWarning, stacklevel=3)


def resolve(name_or_path: str | os.PathLike[str]) -> Path:
    """The directory or GGUF file that a name stands for; an embedded or hub model is fetched where it is
    not there.

    Raises CheckpointError for a name that means nothing, DownloadError for a model that could not be fetched.
    """
    path, name = Path(name_or_path), os.fspath(name_or_path)
    if path.exists():
        return path
    if name in MODELS:
        return find(MODELS[name]) or _pulled(name)
    check_name(name)
    from thrifty.models import hub

    return hub.fetch(name)


def check_name(name_or_path: str | os.PathLike[str]) -> None:
    """Raise CheckpointError for a name that means nothing. Nothing is fetched, so a hub id may still have no model."""
    path, name = Path(name_or_path), os.fspath(name_or_path)
    if path.exists() or name in MODELS:
        return
    from thrifty.models import hub

    if not hub.is_hub_id(name):
        raise CheckpointError(
            f"{name!r} is neither a directory nor a .gguf file, an embedded model or a hub id 'owner/name'. "
            f"{nearest(name, MODELS)}"
        )


def _pulled(name: str) -> Path:
    from thrifty.models.pull import pull

    _LOG.warning("%s is not here yet: fetching it (once)", name)
    return pull(name, note=_LOG.warning)


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    if not 1 <= threads <= MAX_THREADS:
        raise KernelError(f"threads is {threads}; it must be from 1 to {MAX_THREADS}.")
    pool_threads().set(threads)
