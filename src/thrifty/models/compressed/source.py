"""A folder that `thrifty compress` wrote, as a source of decoder parts: views of one mapped file, nothing converted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from thrifty.errors import CheckpointError
from thrifty.formats.linear import DenseLinear, PackedLinear
from thrifty.models.checked_text import parse_json, read_text
from thrifty.models.compressed.layout import (
    PADDING,
    TEMPLATE,
    TOKENIZER,
    TOOL_TEMPLATE,
    WEIGHTS,
    Compressed,
    read_document,
)
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.huggingface.safetensors_file import TensorEntry, read_entries, read_metadata
from thrifty.models.parts import parts
from thrifty.models.source import DType, StoredTensor, Weight, rounded, smallest
from thrifty.models.store.content_key import remembered_digest
from thrifty.models.store.converted_file import ALIGNMENT
from thrifty.models.store.stored_weights import DTYPES, read_weight
from thrifty.models.tokens.settings import MAX_TEMPLATE, TokenizerDefinition
from thrifty.storage.mapped_file import MappedFile

REMEDY = "copy the folder again, or compress the model again"


class CompressedSource:
    """An opened folder: see `source.Source`. What a linear is, all shapes and types are checked when it is opened.

    Raises CheckpointError naming the file and the field or tensor; for weights whose SHA-256 is another one as well.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.files = [folder / WEIGHTS]
        self.document: Compressed = read_document(folder)
        if not self.files[0].is_file():
            raise CheckpointError(f"{folder}: {WEIGHTS} is missing; {REMEDY}.")
        if remembered_digest(self.files[0]) != self.document.sha256:
            raise CheckpointError(f"{self.files[0]} is damaged: it is not the file that was written; {REMEDY}.")
        self._weights = self._read_index()

    @property
    def config(self) -> ModelConfig:
        return self.document.config

    @cached_property
    def tokenizer(self) -> TokenizerDefinition | None:
        """The tokenizer with the chat templates that lie in the folder; read when this is first called."""
        settings = self.document.tokenizer
        if settings is None:
            return None
        plain, tools = _template(self.path / TEMPLATE), _template(self.path / TOOL_TEMPLATE)
        known = replace(settings, chat_template=plain, tool_template=tools)
        return TokenizerDefinition(read_text(self.path / TOKENIZER), known)

    @cached_property
    def file(self) -> MappedFile:
        """The file that all arrays are views of."""
        return MappedFile(self.files[0])

    def weights(self, dtype: DType | None = None) -> Iterator[Weight]:
        """Every part, as views of the mapped file: nothing is read before it is used. `dtype` float32 or bfloat16 gives
        plain linears of the stored values.
        """
        for entry in self._weights:
            weight = read_weight(entry, self.file.content, WEIGHTS)
            if dtype is not None and isinstance(weight.value, PackedLinear):
                plain = rounded(weight.name, weight.value.dequantize(), dtype)
                linear = DenseLinear.from_weight(plain, dtype, bias=weight.value.bias)
                weight = Weight(weight.name, linear, weight.origin)
            yield weight

    def stored(self) -> list[StoredTensor]:
        """What the file holds; no weight is read. A bias is a tensor of its own."""
        shapes, listed = parts(self.config), []
        for entry, weight in zip(self._weights, self.weights(), strict=True):
            name, sizes = weight.name, {key: place["nbytes"] for key, place in entry["tensors"].items()}
            bias = sizes.pop("bias", None)
            shared = weight.value.shared if isinstance(weight.value, PackedLinear) else ()
            own = sum(sizes.values()) if not shared else weight.value.nbytes - (bias or 0)
            listed.append(StoredTensor((name,), _kind(weight), shapes[name], own))
            if bias is not None:
                listed.append(StoredTensor((f"{name}.bias",), "f32", shapes[name][:1], bias))
        return listed

    def samples(self) -> Iterator[Weight]:
        """The smallest matrix of every format, which is its type in the file."""
        wanted = {tensor.names[0] for tensor in smallest(self.stored())}
        return (replace(weight, origin=_kind(weight)) for weight in self.weights() if weight.name in wanted)

    def _read_index(self) -> list[dict[str, Any]]:
        """What the header says of each part, with the places of its arrays in the file."""
        path = self.files[0]
        entries, text = read_entries(path), read_metadata(path).get("weights")
        if text is None:
            raise CheckpointError(f"{path}: the header's metadata has no 'weights'; {REMEDY}.")
        listed, expected = parse_json(text.encode("utf-8"), path), parts(self.config)
        if not isinstance(listed, list):
            raise CheckpointError(f"{path}: the header's 'weights' are no list; {REMEDY}.")
        return [_checked(entry, entries, expected, path) for entry in listed]


def index_text(entries: list[dict[str, Any]]) -> str:
    """The text of the header's "weights": of each part its name, meta, arrays, origin, error and largest_error; `same`:
    which of its arrays lie under another part's name.
    """
    return json.dumps(entries, ensure_ascii=False)


def _checked(
    entry: Any, entries: Mapping[str, TensorEntry], expected: Mapping[str, tuple[int, ...]], path: Path
) -> dict[str, Any]:
    """What the header says of one part, with the places of its arrays. Raises CheckpointError naming the field."""
    known: dict[str, Any] = {field: entry.get(field) if isinstance(entry, Mapping) else None for field in _FIELDS}
    for field, is_right in _FIELDS.items():
        if not is_right(known[field]):
            where = f"'weights', {known['name']!r:.120}"
            raise CheckpointError(f"{path}: the header's {where}: {field} is {known[field]!r:.80}; {REMEDY}.")
    name, arrays, same = known["name"], known.pop("arrays"), known.pop("same")
    if name not in expected:
        raise CheckpointError(f"{path}: {name!r:.120} has no place in this model.")
    tensors = {key: _place(entries, same.get(key, f"{name}/{key}"), path) for key in arrays}
    if known["meta"] is None and [place["dtype"] for place in tensors.values()] != ["f32"]:
        raise CheckpointError(f"{path}: {name!r:.120} is no linear, and must be one array of F32; {REMEDY}.")
    return {**known, "tensors": tensors}


def _is_number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


_FIELDS: Mapping[str, Callable[[object], bool]] = {
    "name": lambda value: isinstance(value, str),
    "meta": lambda value: value is None or isinstance(value, Mapping),
    "arrays": lambda value: isinstance(value, list) and all(isinstance(key, str) for key in value),
    "same": lambda value: isinstance(value, Mapping) and all(isinstance(name, str) for name in value.values()),
    "origin": lambda value: isinstance(value, str),
    "error": _is_number,
    "largest_error": _is_number,
}


def _place(entries: Mapping[str, TensorEntry], name: str, path: Path) -> dict[str, Any]:
    entry = entries.get(name)
    if entry is None or name.startswith(PADDING):
        raise CheckpointError(f"{path}: array {name!r:.120} is missing; {REMEDY}.")
    dtype = entry.dtype.lower()
    if entry.offset % ALIGNMENT:
        raise CheckpointError(f"{path}: array {name!r:.120} begins at byte {entry.offset}, no multiple of {ALIGNMENT}.")
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: array {name!r:.120} has type {entry.dtype}, which is not read.")
    return {"dtype": dtype, "shape": list(entry.shape), "offset": entry.offset, "nbytes": entry.nbytes}


def _kind(weight: Weight) -> str:
    return weight.value.label if isinstance(weight.value, PackedLinear) else "f32"


def _template(path: Path) -> str | None:
    """A chat template; None where there is none or a blank one."""
    if not path.is_file():
        return None
    if path.stat().st_size > 4 * MAX_TEMPLATE:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes is too long for a chat template")
    text = read_text(path)
    return text if text.strip() else None
