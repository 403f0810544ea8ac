"""Writing a model into a folder that `models.load` opens: weights, config, tokenizer."""

from __future__ import annotations

import json
import zlib
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
    places = _places(model)
    digest = write_safetensors(
        folder / WEIGHTS, _shapes(model, places), _arrays(model, places), _metadata(model, places)
    )
    settings = _write_tokenizer(folder, model.tokenizer)
    document = Compressed(model.config, settings, digest, tuple(recipe)).document()
    write_file(folder / CONFIG, _json(document))
    write_file(folder / REPORT, _json(report))


def weights_bytes(model: Model) -> int:
    """Bytes that the weights of a model take in such a folder."""
    places = _places(model)
    return file_bytes(_shapes(model, places), _metadata(model, places))


def _parts(model: Model) -> Iterator[tuple[str, PackedLinear | Floats]]:
    """Linears in the decoder's order, then norms."""
    yield from model.linears.items()
    yield from model.norms.items()


def _state(value: PackedLinear | Floats) -> Mapping[str, Array]:
    return value.state() if isinstance(value, PackedLinear) else {"value": value.astype(np.float32, copy=False)}


def _places(model: Model) -> dict[str, str]:
    """Under which name each array of a linear that may share it lies in the file; the others under their own."""
    known: dict[tuple[int, int], list[tuple[str, Array]]] = {}
    places: dict[str, str] = {}
    for name, linear in model.linears.items():
        for key in linear.shared:
            array = linear.state()[key]
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            same = known.setdefault((zlib.crc32(content), array.nbytes), [])
            own = f"{name}/{key}"
            places[own] = next((other for other, values in same if np.array_equal(array, values)), own)
            if places[own] == own:
                same.append((own, array))
    return places


def _shapes(model: Model, places: Mapping[str, str]) -> dict[str, ArrayShape]:
    return {
        own: (array.shape, array.dtype)
        for name, value in _parts(model)
        for key, array in _state(value).items()
        if places.get(own := f"{name}/{key}", own) == own
    }


def _arrays(model: Model, places: Mapping[str, str]) -> Iterator[tuple[str, Array]]:
    for name, value in _parts(model):
        for key, array in _state(value).items():
            own = f"{name}/{key}"
            if places.get(own, own) == own:
                yield own, array


def _metadata(model: Model, places: Mapping[str, str]) -> dict[str, str]:
    """What stands in the header beside the arrays. same: those that lie there under another part's name."""
    told = {entry.name: entry for entry in model.report}
    entries: list[dict[str, Any]] = []
    for name, value in _parts(model):
        report, keys = told.get(name), list(_state(value))
        entries.append(
            {
                "name": name,
                "meta": value.meta() if isinstance(value, PackedLinear) else None,
                "arrays": keys,
                "same": {key: other for key in keys if (other := places.get(own := f"{name}/{key}", own)) != own},
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
