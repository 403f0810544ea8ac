"""A GGUF file as a source of decoder parts: every tensor in the format of its type, with the file's own values."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from thrifty.arrays import Array, Floats, Integers
from thrifty.errors import CheckpointError
from thrifty.kernels.reference.ggml import values
from thrifty.models.gguf.architectures import architecture
from thrifty.models.gguf.config import read_config
from thrifty.models.gguf.file import GGUF
from thrifty.models.gguf.rows import TensorRows, plain, stored
from thrifty.models.parts import EXACT, parts
from thrifty.models.source import DType, SlicedLinear, SlicedWeight, StoredTensor, Weight, not_finite, smallest
from thrifty.models.tokens.gguf import from_metadata

_LAYER_TENSOR = re.compile(r"blk\.(\d{1,4})\.([a-z_]+)\.(weight|bias)")
_LAYER_PARTS: Mapping[str, str] = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.output",
    "attn_q_norm": "attention.query_norm",
    "attn_k_norm": "attention.key_norm",
    "post_attention_norm": "post_attention_norm",
    "ffn_norm": "mlp_norm",
    "post_ffw_norm": "post_mlp_norm",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_exps": "mlp.experts.gate",
    "ffn_up_exps": "mlp.experts.up",
    "ffn_down_exps": "mlp.experts.down",
    "ffn_gate_inp_shexp": "mlp.shared_gate",
    "ffn_gate_shexp": "mlp.shared.gate",
    "ffn_up_shexp": "mlp.shared.up",
    "ffn_down_shexp": "mlp.shared.down",
}
# Several matrices in one, row below row; "architecture.tensor" goes for one architecture alone.
_JOINED: Mapping[str, tuple[str, ...]] = {
    "attn_qkv": ("attention.query", "attention.key", "attention.value"),
    "phi3.ffn_up": ("mlp.gate", "mlp.up"),
}
_MODEL_PARTS: Mapping[str, str] = {
    "token_embd.weight": "embedding",
    "output_norm.weight": "final_norm",
    "output_norm.bias": "final_norm.bias",
    "output.weight": "head",
}
# Read by the config, or derived from it.
_NOT_PARTS = frozenset(("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight", "attn_rot_embd"))


class GGUFSource:
    """An opened GGUF file: see `source.Source`.

    Raises CheckpointError or ConfigError, naming the field or tensor, for whatever does not fit together; no weight is
    touched before all shapes were checked.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.open(GGUF(path))

    def open(self, file: GGUF) -> None:
        """Read config and tokenizer of an opened file, and check that all tensors fit."""
        self.file = file
        self._architecture = architecture(self.file)
        self.tokenizer = from_metadata(self.file.metadata)
        self.config = read_config(self.file, self.tokenizer.settings)
        self._check_tokens()
        self._places = self._check_shapes()

    def weights(self, dtype: DType | None = None) -> Iterator[Weight]:
        """Every part once, in the order of the file."""
        return (weight.whole() for weight in self._read(dtype))

    def sliced(self) -> Iterator[SlicedWeight]:
        """Every part once, in the order of the file; linears are read when their slices are."""
        return self._read(None)

    def _read(self, dtype: DType | None) -> Iterator[SlicedWeight]:
        for place in self._places:
            kind = self.file.tensor(place.tensor).type
            if place.is_vector:
                with self._named():
                    vector = self._vector(place, kind)
                yield SlicedWeight(place.name, vector, kind)
                continue
            start = 0
            for name in place.names:
                part = _Place(place.tensor, (name,), self._expected[name])
                rows = TensorRows(self.file, place.tensor, start, part.matrix, self._order(part))
                start += part.rows
                yield SlicedWeight(name, self._linear(rows, name, dtype), kind)

    def stored(self) -> list[StoredTensor]:
        """What the file holds of the decoder; no weight is read."""
        infos = ((place.names, self.file.tensor(place.tensor)) for place in self._places)
        return [StoredTensor(names, info.type, info.shape, info.nbytes) for names, info in infos]

    def samples(self) -> Iterator[Weight]:
        """The first part of the smallest matrix of every tensor type, as `weights` gives it."""
        wanted = {tensor.names[0] for tensor in smallest(self.stored())}
        return (weight.whole() for weight in self._read(None) if weight.name in wanted)

    def _linear(self, rows: TensorRows, name: str, dtype: DType | None) -> SlicedLinear:
        if dtype is None and not name.endswith(EXACT):
            linear = stored(rows)
        else:
            linear = plain(rows, np.dtype(np.float32 if dtype is None else dtype))

        def named() -> Iterator[Mapping[str, Array]]:
            with self._named():
                yield from linear.slices()

        return replace(linear, slices=named)

    def _vector(self, place: _Place, kind: str) -> Floats:
        """A norm or a bias, fp32 [width]."""
        flat = values(kind, self.file.rows(place.tensor)).reshape(-1)
        if not np.isfinite(flat).all():
            raise CheckpointError(not_finite(place.tensor, flat))
        order = self._order(place)
        vector: Floats = flat.copy() if order is None else flat[order]
        self.file.forget(place.tensor)
        return vector

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What is wrong with a tensor, with the file's name before it."""
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(f"{self.file.path}: {error}") from error

    def _order(self, place: _Place) -> Integers | None:
        """How rows of query and key go back from interleaved pairs to halves, where the architecture stores them so."""
        leaf = place.name.removesuffix(".bias")
        heads = {".query": self.config.heads, ".key": self.config.kv_heads}
        count = next((number for suffix, number in heads.items() if leaf.endswith(f"attention{suffix}")), None)
        if not self._architecture.permuted or count is None:
            return None
        return np.arange(place.rows).reshape(count, -1, 2).swapaxes(1, 2).reshape(-1)

    def _check_tokens(self) -> None:
        """Every token needs a row of the embedding; rows beyond them are padding."""
        count, rows = self.tokenizer.settings.vocabulary_size, self.config.vocabulary_size
        if count > rows:
            raise CheckpointError(
                f"{self.file.path}: tensor 'token_embd.weight' has {rows} rows, but 'tokenizer.ggml.tokens' has "
                f"{count} tokens; convert the model again"
            )

    def _check_shapes(self) -> list[_Place]:
        self._check_experts()
        self._expected = expected = parts(self.config)
        places = [self._place(name, expected) for name in self.file.tensors if not _ignored(name)]
        held = {name for place in places for name in place.names}
        missing = [name for name in expected if name not in held]
        if missing:
            raise CheckpointError(
                f"{self.file.path}: no tensor for {missing[0]!r} {list(expected[missing[0]])}"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            )
        return places

    def _check_experts(self) -> None:
        """Bound the number of experts by what the file holds before a decoder with as many places is made."""
        if self.config.experts is None:
            return
        for index in (index for index, layer in enumerate(self.config.layers) if layer.experts):
            name = f"blk.{index}.ffn_gate_exps.weight"
            shape = self.file.tensor(name).shape
            if len(shape) != 3 or shape[0] != self.config.experts.count:
                raise CheckpointError(
                    f"{self.file.path}: tensor '{name}' has shape {list(shape)}; "
                    f"{self.config.experts.count} experts are expected"
                )

    def _place(self, tensor: str, expected: Mapping[str, tuple[int, ...]]) -> _Place:
        held = _part_names(tensor, self.file.architecture)
        name = held[0] if held else None
        shape = self.file.tensor(tensor).shape
        experts = self.config.experts
        if name is not None and ".mlp.experts." in name and experts is not None:
            names = tuple(f"{name}.{index}" for index in range(experts.count))
        else:
            names = held or ("",)
        if any(part not in expected for part in names):
            raise CheckpointError(
                f"{self.file.path}: tensor '{tensor[:80]}' has no place in a model of the architecture "
                f"'{self.file.architecture}'"
            )
        wanted = expected[names[0]]
        if len(held) > 1:
            full: tuple[int, ...] = (sum(expected[part][0] for part in names), *wanted[1:])
        else:
            full = (len(names), *wanted) if len(names) > 1 or len(shape) == 3 else wanted
        if shape != full and not (full == (1, *shape)):
            raise CheckpointError(
                f"{self.file.path}: tensor '{tensor}' has shape {list(shape)}; {list(full)} is expected"
            )
        return _Place(tensor, names, wanted)


@dataclass(frozen=True)
class _Place:
    """Where a tensor goes: one part, or one for each expert."""

    tensor: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.names[0])

    @property
    def is_vector(self) -> bool:
        return len(self.shape) == 1

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of each part."""
        rows, columns = self.shape
        return rows, columns


def _ignored(tensor: str) -> bool:
    return tensor in _NOT_PARTS or tensor.endswith(".attn_rot_embd.weight")


def _part_names(tensor: str, architecture: str) -> tuple[str, ...]:
    """The parts in a tensor, in the order of its rows (of experts: their common beginning); none: it has no place."""
    if tensor in _MODEL_PARTS:
        return (_MODEL_PARTS[tensor],)
    match = _LAYER_TENSOR.fullmatch(tensor)
    if match is None:
        return ()
    joined = _JOINED.get(f"{architecture}.{match[2]}") or _JOINED.get(match[2])
    inner = joined or ((_LAYER_PARTS[match[2]],) if match[2] in _LAYER_PARTS else ())
    suffix = ".bias" if match[3] == "bias" else ""
    return tuple(f"layers.{int(match[1])}.{part}{suffix}" for part in inner)


def tensor_name(part: str) -> str | None:
    """What a GGUF file calls a decoder's part, such as "layers.0.mlp.gate" or "final_norm.bias": the inverse of what is
    read here. None for a part that lies with others in one tensor.
    """
    leaf = "bias" if part.endswith(".bias") else "weight"
    path = part.removesuffix(".bias")
    for tensor, ours in _MODEL_PARTS.items():
        if ours == path:
            return f"{tensor.rpartition('.')[0]}.{leaf}"
    _, layer, inner = path.split(".", 2)
    name = next((tensor for tensor, ours in _LAYER_PARTS.items() if ours == inner), None)
    return None if name is None else f"blk.{layer}.{name}.{leaf}"
