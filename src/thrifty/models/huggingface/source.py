"""A Hugging Face directory as a source of decoder parts: safetensors, one file or several, tensor by
tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from thrifty.arrays import BFLOAT16, Array
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.linear import DenseLinear
from thrifty.models.huggingface.folder import INDEX, read_config, weight_files, weight_map
from thrifty.models.huggingface.names import part_names
from thrifty.models.huggingface.safetensors_file import WEIGHT_TYPES, TensorEntry, TensorReader, read_entries, read_json
from thrifty.models.parts import EXACT, parts
from thrifty.models.quantised.config import read_method
from thrifty.models.quantised.linears import Codes, modules
from thrifty.models.source import (
    ROWS_AT_A_TIME,
    Deviation,
    DType,
    StoredTensor,
    Weight,
    not_finite,
    rounded,
    smallest,
)
from thrifty.models.tokens.settings import TokenizerDefinition

# Tensors of a checkpoint that the decoder does not need: the vision half of Gemma 3, tables that are computed, and the
# scales of a cache in FP8.
_SKIPPED = re.compile(
    r"^(?:model\.)?(?:vision_tower|multi_modal_projector)\.|\.rotary_emb\.inv_freq$|\.self_attn\.[kv]_scale$"
)


@dataclass(frozen=True)
class _Place:
    """A tensor and the decoder parts that it holds: one, several whose rows lie below one another, or those of all
    experts (`fused`; `gate` above `up`).
    """

    entry: TensorEntry
    names: tuple[str, ...]
    fused: bool = False
    module: Mapping[str, TensorEntry] = field(default_factory=dict)  # of a quantised linear: its tensors, by member


class HuggingFaceSource:
    """An opened directory: see `source.Source`.

    Config, names, shapes and types are all checked when it is opened; no weight is read before. Raises
    ConfigError or CheckpointError naming the field or tensor, what was expected and what was found.
    """

    def __init__(self, directory: str | Path, tokenizer: TokenizerDefinition | None = None) -> None:
        self.path = Path(directory)
        self.tokenizer = tokenizer
        self.files = weight_files(self.path)
        self.config = read_config(self.path)
        self._method = read_method(read_json(self.path / "config.json"))
        self.entries = self._entries()
        self._places = self._check()

    def weights(self, dtype: DType | None = None) -> Iterator[Weight]:
        """Every part once. `dtype` None keeps matrices of F16 and BF16, and rounds those of F32 to bf16; float32 and
        bfloat16 give plain linears.
        """
        reader = TensorReader()
        for place in self._places:
            if place.module:
                yield from self._quantised(reader, place, dtype)
            elif place.fused:
                yield from self._fused(reader, place, dtype)
            else:
                yield from self._joined(reader.read(place.entry), place, dtype)

    def _quantised(self, reader: TensorReader, place: _Place, dtype: DType | None) -> Iterator[Weight]:
        """Parts of one quantised linear."""
        assert self._method is not None, "a quantised linear has a method"
        shapes = [self._expected[name] for name in place.names]
        tensors = {member: reader.codes(entry) for member, entry in place.module.items()}
        start = 0
        try:
            codes = self._method.read(tensors, sum(shape[0] for shape in shapes), shapes[0][1])
            for name, shape in zip(place.names, shapes, strict=True):
                yield _of_codes(name, codes.part(slice(start, start + shape[0])), self._method.name, dtype)
                start += shape[0]
        except (CheckpointError, KernelError) as error:
            raise CheckpointError(f"{place.entry.path}: tensor {place.entry.name!r}: {error}") from error

    def _joined(self, tensor: Array, place: _Place, dtype: DType | None) -> Iterator[Weight]:
        """Parts of one tensor [rows of all, in], or of a bias of all."""
        start = 0
        for name in place.names:
            stop = start + self._expected[name][0]
            yield _stored(place.entry, name, tensor[start:stop], dtype)
            start = stop

    def stored(self) -> list[StoredTensor]:
        """What the files hold of the decoder; no weight is read."""
        return [self._stored_tensor(place) for place in self._places]

    def _stored_tensor(self, place: _Place) -> StoredTensor:
        """A quantised linear is one tensor of its method's type, of all the bytes that make it up."""
        if not place.module:
            return StoredTensor(place.names, place.entry.dtype, place.entry.shape, place.entry.nbytes)
        assert self._method is not None, "a quantised linear has a method"
        shapes = [self._expected[name] for name in place.names]
        nbytes = sum(entry.nbytes for entry in place.module.values())
        return StoredTensor(place.names, self._method.name, (sum(rows for rows, _ in shapes), shapes[0][1]), nbytes)

    def samples(self) -> Iterator[Weight]:
        """The first part of the smallest matrix of every tensor type, as `weights` gives it."""
        reader, wanted = TensorReader(), {tensor.names[0] for tensor in smallest(self.stored())}
        for place in self._places:
            if place.names[0] not in wanted:
                continue
            if place.module:
                yield next(self._quantised(reader, place, None))
            elif place.fused:
                yield next(self._fused(reader, place, None))
            else:
                yield _stored(place.entry, place.names[0], reader.read(place.entry), None)

    def _fused(self, reader: TensorReader, place: _Place, dtype: DType | None) -> Iterator[Weight]:
        """Parts of one tensor [experts, out, in]; where gate and up share it, gate is the upper half of
        the rows.
        """
        count = place.entry.shape[0]
        shared = len(place.names) // count
        for index in range(count):
            matrices = np.split(reader.read(place.entry, index), shared)
            for name, matrix in zip(place.names[index * shared :], matrices, strict=False):
                yield _stored(place.entry, name, matrix, dtype)

    def _entries(self) -> dict[str, TensorEntry]:
        """Every tensor by name. Where there is an index, it says which file a tensor is read from; what a file holds
        beside that (left over from another format, say) is not part of the checkpoint.
        """
        if not (self.path / INDEX).is_file():
            return read_entries(self.files[0])
        held = {path.name: read_entries(path) for path in self.files}
        entries: dict[str, TensorEntry] = {}
        for tensor, name in weight_map(self.path).items():
            if tensor not in held[name]:
                raise CheckpointError(f"{self.path / INDEX}: tensor {tensor!r:.120} is not in {name!r}.")
            entries[tensor] = held[name][tensor]
        return entries

    def _check(self) -> list[_Place]:
        """Every tensor's place; raises where one is missing, extra, or of the wrong shape or type."""
        wanted = [entry for name, entry in self.entries.items() if not _SKIPPED.search(name)]
        self._check_size(wanted)
        self._expected = expected = parts(self.config)
        linears, plain = ({}, wanted) if self._method is None else modules(wanted, self._method)
        places = [place for entry in plain if (place := self._place(entry, expected)) is not None]
        places += [self._quantised_place(name, tensors, expected) for name, tensors in linears.items()]
        seen: dict[str, str] = {}
        for place in places:
            for name in place.names:
                if name in seen:
                    raise CheckpointError(f"Tensors {seen[name]!r} and {place.entry.name!r} are the same part.")
                seen[name] = place.entry.name
        missing = [name for name in expected if name not in seen]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            shape = list(expected[missing[0]])
            raise CheckpointError(f"{self.path}: no tensor for {missing[0]!r}, expected shape {shape}{more}.")
        return places

    def _check_size(self, entries: list[TensorEntry]) -> None:
        """Refuse a config that claims far more layers or experts than there are tensors, before building
        them.
        """
        config = self.config
        held = sum(entry.shape[0] if len(entry.shape) == 3 else 1 for entry in entries)
        sparse = sum(layer.experts for layer in config.layers)
        claimed = len(config.layers) + sparse * (config.experts.count if config.experts else 0)
        if claimed > held:
            raise CheckpointError(
                f"{self.path}: num_hidden_layers is {len(config.layers)} with "
                f"{config.experts.count if config.experts else 0} experts in {sparse} of them; "
                f"the files hold only {held} tensors."
            )

    def _place(self, entry: TensorEntry, expected: Mapping[str, tuple[int, ...]]) -> _Place | None:
        names, fused = part_names(entry.name, len(entry.shape), self.config)
        if names == ("head",) and self.config.tied_embeddings:
            embedding = next((held for held in self.entries.values() if self._is_embedding(held)), None)
            if embedding is not None:
                _check_tied(entry, embedding)
                return None
            names = ("embedding",)  # of two names for one tensor some writers keep this one
        if not names or any(name not in expected for name in names):
            raise CheckpointError(
                f"{entry.path}: tensor {entry.name!r:.120} has no place in a {self.config.family} model."
            )
        shape: tuple[int, ...] = expected[names[0]]
        if fused:
            shape = (entry.shape[0], len(names) // entry.shape[0] * shape[0], shape[1])
        else:
            shape = (sum(expected[name][0] for name in names), *shape[1:])
        if entry.shape != shape:
            raise CheckpointError(
                f"{entry.path}: tensor {entry.name!r} has shape {list(entry.shape)}; expected {list(shape)}."
            )
        if entry.dtype not in WEIGHT_TYPES:
            raise CheckpointError(
                f"{entry.path}: tensor {entry.name!r} has type {entry.dtype}; "
                f"expected one of {', '.join(WEIGHT_TYPES)}."
            )
        return _Place(entry, names, fused)

    def _quantised_place(
        self, module: str, tensors: Mapping[str, TensorEntry], expected: Mapping[str, tuple[int, ...]]
    ) -> _Place:
        """Raises CheckpointError where the linear has no place, or its tensors do not fit together."""
        assert self._method is not None, "a quantised linear has a method"
        entry = next(tensors[mark] for mark in self._method.marks if mark in tensors)
        names, _ = part_names(f"{module}.weight", 2, self.config)
        if not names or any(name not in expected for name in names):
            raise CheckpointError(
                f"{entry.path}: tensor {entry.name!r:.120} has no place in a {self.config.family} model."
            )
        rows, columns = sum(expected[name][0] for name in names), expected[names[0]][1]
        self._method.check(module, tensors, rows, columns)
        return _Place(entry, names, module=tensors)

    def _is_embedding(self, entry: TensorEntry) -> bool:
        return part_names(entry.name, len(entry.shape), self.config)[0] == ("embedding",)


def _check_tied(head: TensorEntry, embedding: TensorEntry) -> None:
    """A head beside tied embeddings is allowed where it is the embedding; which of two to use is not a guess."""
    reader = TensorReader()
    is_alike = (embedding.shape, embedding.dtype) == (head.shape, head.dtype)
    if not is_alike or not np.array_equal(reader.read(embedding), reader.read(head)):
        reason = "differs from the embedding, but tie_word_embeddings is true"
        remedy = "Set it to false in config.json to use this tensor as the head, or remove the tensor"
        raise CheckpointError(f"{head.path}: tensor {head.name!r} {reason}. {remedy} to use the embedding.")


def _stored(entry: TensorEntry, name: str, tensor: Array, dtype: DType | None) -> Weight:
    """The part `name` as it is stored. An error says which tensor of which file the part came from."""
    try:
        return _weight(name, tensor, entry.dtype, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{entry.path}: tensor {entry.name!r}: {error}") from error


def _weight(name: str, tensor: Array, origin: str, dtype: DType | None) -> Weight:
    if not np.isfinite(tensor).all():
        raise CheckpointError(not_finite(name, tensor.astype(np.float32)))
    if tensor.ndim == 1:
        return Weight(name, tensor.astype(np.float32), origin)
    if dtype is not None or name.endswith(EXACT):
        plain = rounded(name, tensor, np.dtype(np.float32 if dtype is None else dtype))
        return Weight(name, DenseLinear.from_weight(plain, plain.dtype), origin)
    if origin == "F16":  # kernels take its rows as they are
        return Weight(name, DenseLinear.from_weight(tensor, np.float16), origin)
    stored = rounded(name, tensor, BFLOAT16)
    error, largest = (0.0, 0.0) if origin == "BF16" else _difference(tensor, stored)
    return Weight(name, DenseLinear.from_weight(stored, BFLOAT16, packed=True), origin, error, largest)


def _of_codes(name: str, codes: Codes, origin: str, dtype: DType | None) -> Weight:
    """The part `name` of a quantised linear: at its own bits, or in a plain type."""
    if dtype is not None or name.endswith(EXACT):
        plain = rounded(name, codes.values(), np.dtype(np.float32 if dtype is None else dtype))
        return Weight(name, DenseLinear.from_weight(plain, plain.dtype), origin)
    linear = codes.linear()
    error, largest = (0.0, 0.0) if codes.exact else _difference(codes.values(), linear.dequantize())
    return Weight(name, linear, origin, error, largest)


def _difference(exact: Array, stored: Array) -> tuple[float, float]:
    """Relative root-mean-square and largest absolute difference."""
    deviation = Deviation()
    for start in range(0, len(exact), ROWS_AT_A_TIME):
        part = slice(start, start + ROWS_AT_A_TIME)
        deviation.add(exact[part].astype(np.float32), stored[part].astype(np.float32))
    return deviation.relative, deviation.largest
