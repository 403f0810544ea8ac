"""A GGUF file as a source of decoder parts: quantised tensors become group codes, a slice of rows at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from thrifty.arrays import BFLOAT16, Array, Bytes, Floats
from thrifty.errors import CheckpointError
from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear
from thrifty.models.gguf import GGUF
from thrifty.models.gguf_blocks import FORMATS, GROUP, GroupCodes, group_codes, values
from thrifty.models.gguf_config import architecture, read_config
from thrifty.models.parts import parts
from thrifty.models.source import ROWS_AT_A_TIME, Deviation, DType, Weight, not_finite, rounded
from thrifty.models.tokenizer_gguf import from_metadata

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
# Small matrices whose rounding would change which experts a token meets: kept as they are.
_EXACT = (".router", ".shared_gate")


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
        self._places = self._check_shapes()

    def weights(self, dtype: DType | None = None) -> Iterator[Weight]:
        """Every part once, in the order of the file."""
        for place in self._places:
            try:
                yield from self._read(place, dtype)
            except CheckpointError as error:
                raise CheckpointError(f"{self.file.path}: {error}") from error
            self.file.forget(place.tensor)

    def _read(self, place: _Place, dtype: DType | None) -> Iterator[Weight]:
        kind = self.file.tensor(place.tensor).type
        rows = self.file.rows(place.tensor)
        if place.is_vector:
            flat = values(kind, rows).reshape(-1)
            _require_finite(flat, place.tensor)
            yield Weight(place.name, self._reordered(place, flat).copy(), kind)
            return
        start = 0
        for name in place.names:
            one = _Place(place.tensor, (name,), self._expected[name])
            part = rows[start : start + one.rows]
            start += one.rows
            yield _linear_weight(self._reordered(one, part), kind, name, one, dtype)

    def _reordered(self, place: _Place, rows: Array) -> Array:
        """Rows of query and key put back from interleaved pairs to halves, where the architecture stores them so."""
        leaf = place.name.removesuffix(".bias")
        heads = {".query": self.config.heads, ".key": self.config.kv_heads}
        count = next((number for suffix, number in heads.items() if leaf.endswith(f"attention{suffix}")), None)
        if not self._architecture.permuted or count is None:
            return rows
        order = np.arange(len(rows)).reshape(count, -1, 2).swapaxes(1, 2).reshape(-1)
        return rows[order]

    def _check_shapes(self) -> list[_Place]:
        self._check_experts()
        self._expected = expected = parts(self.config)
        places = [self._place(name, expected) for name in self.file.tensors if not _ignored(name)]
        found = {name for place in places for name in place.names}
        missing = [name for name in expected if name not in found]
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
        for index in range(len(self.config.layers)):
            name = f"blk.{index}.ffn_gate_exps.weight"
            shape = self.file.tensor(name).shape
            if len(shape) != 3 or shape[0] != self.config.experts.count:
                raise CheckpointError(
                    f"{self.file.path}: tensor '{name}' has shape {list(shape)}; "
                    f"{self.config.experts.count} experts are expected"
                )

    def _place(self, tensor: str, expected: Mapping[str, tuple[int, ...]]) -> _Place:
        found = _part_names(tensor, self.file.architecture)
        name = found[0] if found else None
        shape = self.file.tensor(tensor).shape
        experts = self.config.experts
        if name is not None and ".mlp.experts." in name and experts is not None:
            names = tuple(f"{name}.{index}" for index in range(experts.count))
        else:
            names = found or ("",)
        if any(part not in expected for part in names):
            raise CheckpointError(
                f"{self.file.path}: tensor '{tensor[:80]}' has no place in a model of the architecture "
                f"'{self.file.architecture}'"
            )
        wanted = expected[names[0]]
        if len(found) > 1:
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


def _linear_weight(rows: Bytes, kind: str, name: str, place: _Place, dtype: DType | None) -> Weight:
    if dtype is not None or name.endswith(_EXACT):
        return _plain(rows, kind, name, place, np.dtype(np.float32 if dtype is None else dtype))
    return _grouped(rows, kind, name, place) if kind in FORMATS else _dense(rows, kind, name, place)


def _plain(rows: Bytes, kind: str, name: str, place: _Place, dtype: DType) -> Weight:
    """A plain linear of the exact values."""
    weight = np.empty(place.shape, dtype)
    for part, exact in _slices(rows, kind, place.tensor):
        weight[part] = rounded(place.tensor, exact, dtype)
    return Weight(name, DenseLinear.from_weight(weight, dtype), kind)


def _dense(rows: Bytes, kind: str, name: str, place: _Place) -> Weight:
    """Packed bf16 of an unquantised tensor."""
    weight = np.empty(place.shape, BFLOAT16)
    error = Deviation()
    for part, exact in _slices(rows, kind, place.tensor):
        weight[part] = rounded(place.tensor, exact, BFLOAT16)
        error.add(exact, weight[part].astype(np.float32))
    linear = DenseLinear.from_weight(weight, BFLOAT16, packed=True)
    return Weight(name, linear, kind, error.relative, error.largest)


def _grouped(rows: Bytes, kind: str, name: str, place: _Place) -> Weight:
    """Group codes, filled a slice of rows at a time into the final layout: the peak is the result and a slice."""
    state: dict[str, Array] = {}
    error = Deviation()
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        raw = rows[start : start + ROWS_AT_A_TIME]
        codes = group_codes(kind, raw, place.tensor)
        if not FORMATS[kind].exact:
            error.add(values(kind, raw), codes.dequantize())
        tiles = -(-place.rows // 16)
        for key, array in _linear(codes).state().items():
            if key not in state:
                state[key] = np.empty((tiles, *array.shape[1:]), array.dtype)
            state[key][start // 16 : start // 16 + len(array)] = array
    meta = {"kind": "group", "out_features": place.shape[0], "in_features": place.shape[1], "group": GROUP}
    linear = PackedLinear.from_state({**meta, "bits": FORMATS[kind].bits}, state)
    return Weight(name, linear, kind, error.relative, error.largest)


def _linear(codes: GroupCodes) -> GroupLinear:
    plain = (codes.codes ^ np.uint8(128)).view(np.int8) if codes.bits == 8 else codes.codes
    return GroupLinear.from_codes(plain, codes.scales, codes.minimums, codes.bits, GROUP)


def _slices(rows: Bytes, kind: str, tensor: str) -> Iterator[tuple[slice, Floats]]:
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        part = slice(start, start + ROWS_AT_A_TIME)
        exact = values(kind, rows[part])
        _require_finite(exact, tensor)
        yield part, exact


def _require_finite(exact: Floats, tensor: str) -> None:
    if not np.isfinite(exact).all():
        raise CheckpointError(not_finite(tensor, exact))
