"""Writing a model into a folder that `models.load` opens: weights, config, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.arrays import Array, Floats
from thrifty.formats.gguf import ArrayShape
from thrifty.formats.linear import PackedLinear
from thrifty.models.compressed.layout import (
    CONFIG,
    REPORT,
    TEMPLATE,
    TOKENIZER,
    TOOL_TEMPLATE,
    WEIGHTS,
    Compressed,
)
from thrifty.models.compressed.safetensors_writer import file_bytes, write_safetensors
from thrifty.models.compressed.source import index_text
from thrifty.models.model import Model
from thrifty.models.store.cache_entry import write_file
from thrifty.models.tokens.settings import TokenizerSettings
from thrifty.models.tokens.tokenizer import Tokenizer

Report = Mapping[str, Any]


def write_model(folder: Path, model: Model, recipe: Sequence[Mapping[str, Any]], report: Report) -> None:
    """Fill an empty folder; all is on the disk when this returns. Arrays that are mapped from a file leave the process
    once they are written.

    recipe: the tables of the weight techniques that were applied. report: as `report.json` has it. Raises OSError.
    """
    digest = write_safetensors(folder / WEIGHTS, _shapes(model), _arrays(model), _metadata(model))
    settings = _write_tokenizer(folder, model.tokenizer)
    document = Compressed(model.config, settings, digest, tuple(recipe)).document()
    write_file(folder / CONFIG, _json(document))
    write_file(folder / REPORT, _json(report))


def weights_bytes(model: Model) -> int:
    """Bytes that the weights of a model take in such a folder."""
    return file_bytes(_shapes(model), _metadata(model))


def _parts(model: Model) -> Iterator[tuple[str, PackedLinear | Floats]]:
    """Linears in the decoder's order, then norms."""
    yield from model.linears.items()
    yield from model.norms.items()


def _state(value: PackedLinear | Floats) -> Mapping[str, Array]:
    return value.state() if isinstance(value, PackedLinear) else {"value": value.astype(np.float32, copy=False)}


def _shapes(model: Model) -> dict[str, ArrayShape]:
    return {
        f"{name}/{key}": (array.shape, array.dtype)
        for name, value in _parts(model)
        for key, array in _state(value).items()
    }


def _arrays(model: Model) -> Iterator[tuple[str, Array]]:
    for name, value in _parts(model):
        for key, array in _state(value).items():
            yield f"{name}/{key}", array


def _metadata(model: Model) -> dict[str, str]:
    """What stands in the header beside the arrays."""
    told = {entry.name: entry for entry in model.report}
    entries: list[dict[str, Any]] = []
    for name, value in _parts(model):
        report = told.get(name)
        entries.append(
            {
                "name": name,
                "meta": value.meta() if isinstance(value, PackedLinear) else None,
                "arrays": list(_state(value)),
                "origin": "F32" if report is None else report.origin,
                "error": 0.0 if report is None else float(report.error),
                "largest_error": 0.0 if report is None else float(report.largest_error),
            }
        )
    return {"format": "thrifty", "weights": index_text(entries)}


def _write_tokenizer(folder: Path, tokenizer: Tokenizer | None) -> TokenizerSettings | None:
    """Definition and templates as files; the settings, for `config.json`. None for a model without a tokenizer."""
    if tokenizer is None:
        return None
    write_file(folder / TOKENIZER, tokenizer.definition.encode("utf-8"))
    settings = tokenizer.settings
    templates = {TEMPLATE: settings.chat_template, TOOL_TEMPLATE: settings.tool_template}
    for name, text in templates.items():
        if text is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            write_file(folder / name, text.encode("utf-8"))
    return settings


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode("utf-8")
