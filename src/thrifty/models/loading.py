"""One door to every model: a directory, a GGUF file, an embedded model's name, or a hub id."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from thrifty.errors import CheckpointError, KernelError, ThriftyWarning, nearest
from thrifty.kernels import dispatch
from thrifty.models import hub
from thrifty.models.assembly import Assembly
from thrifty.models.checkpoint_key import checkpoint_key
from thrifty.models.converted import open_converted
from thrifty.models.description import Description
from thrifty.models.embedded import MODELS, find
from thrifty.models.gguf_source import GGUFSource
from thrifty.models.huggingface import HuggingFaceSource
from thrifty.models.model import Model, TensorReport
from thrifty.models.source import Source, Weight
from thrifty.models.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)

MAX_THREADS = 1024


def load(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    threads: int | None = None,
    native: bool | None = None,
) -> Model:
    """A model, ready to answer.

    name_or_path: a Hugging Face directory, a `.gguf` file, the name of an embedded model, or a hub id
    "owner/name". dtype: None keeps the checkpoint's own numbers in packed form, converted once and mapped
    into memory; float32 (which trains) or bfloat16 gives plain linears. threads: of the native kernels.
    native: False keeps the linears on the plain reference path; True raises KernelError where the extension
    is absent. Raises CheckpointError (ConfigError for a config) naming the file and field, DownloadError
    for a model that could not be fetched.
    """
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise CheckpointError(f"dtype is {dtype}; it must be torch.float32, torch.bfloat16 or None.")
    _set_up_kernels(threads, native)
    path = resolve(name_or_path)
    key = checkpoint_key(path)
    if dtype is None:
        converted = open_converted(key, lambda: open_source(path))
        source: Source = converted
        tokenizer = _lazy_tokenizer(converted.description)
    else:
        source = open_source(path)
        definition = source.tokenizer
        tokenizer = None if definition is None else Tokenizer(definition.definition, definition.settings)
    _warn(path, tokenizer)
    model = assemble(source, dtype)
    model.version = key.content if dtype is None else f"{key.content}-{dtype}"
    model.tokenizer, model.path = tokenizer, path
    if native is False:
        for _, linear in model.decoder.linears():
            linear.native = False  # type: ignore[assignment]
    return model


def assemble(source: Source, dtype: torch.dtype | None = None) -> Model:
    """The model of an opened checkpoint, without a tokenizer; each part is assigned as it comes."""
    assembly, report = Assembly(source.config), []
    for weight in source.weights(dtype):
        assembly.put(weight.name, weight.value)
        report.append(_report(weight))
    return Model(source.config, assembly.finish(), report=report)


def _report(weight: Weight) -> TensorReport:
    value = weight.value
    if isinstance(value, Tensor):
        return TensorReport(weight.name, "f32", weight.origin, value.numel() * value.element_size())
    return TensorReport(weight.name, value.label, weight.origin, value.nbytes, weight.error, weight.largest_error)


def open_source(path: Path) -> Source:
    """The checkpoint of a Hugging Face folder or a GGUF file, opened and checked; no weight is read yet."""
    if not path.is_dir():
        return GGUFSource(path)
    from thrifty.models.tokenizer_files import read_tokenizer

    return HuggingFaceSource(path, read_tokenizer(path))


def _lazy_tokenizer(description: Description) -> Tokenizer | None:
    """A tokenizer that reads its definition when it is first used."""
    settings = description.settings
    return None if settings is None else Tokenizer(description.definition, settings)


def _warn(path: Path, tokenizer: Tokenizer | None) -> None:
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
    if hub.is_hub_id(name):
        return hub.fetch(name)
    raise CheckpointError(
        f"{name!r} is neither a directory nor a .gguf file, an embedded model or a hub id 'owner/name'. "
        f"{nearest(name, MODELS)}"
    )


def _pulled(name: str) -> Path:
    from thrifty.models.pull import pull

    _LOG.warning("%s is not here yet: fetching it (once)", name)
    return pull(name, note=_LOG.warning)


def _set_up_kernels(threads: int | None, native: bool | None) -> None:
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise KernelError(f"threads is {threads}; it must be from 1 to {MAX_THREADS}.")
    if native:
        dispatch.require()
    if threads is not None:
        dispatch.set_threads(threads)
