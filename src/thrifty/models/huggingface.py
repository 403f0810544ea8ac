"""A Hugging Face directory as a source of decoder parts: safetensors, one file or several, tensor by
tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from thrifty.arrays import BFLOAT16, Array
from thrifty.errors import CheckpointError
from thrifty.formats.linear import DenseLinear
from thrifty.models.config import ModelConfig
from thrifty.models.config_fields import Fields
from thrifty.models.config_huggingface import TOKEN_LIMIT, from_huggingface
from thrifty.models.parts import parts
from thrifty.models.safetensors_file import WEIGHT_TYPES, TensorEntry, TensorReader, read_entries, read_json
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
from thrifty.models.tokenizer_settings import TokenizerDefinition

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[^/\0]{1,200}\.safetensors")

# Names inside a layer, once prefixes are gone. Mixtral's w1, w2, w3 are gate, down and up.
_ATTENTION = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
    "input_layernorm": "attention_norm",
}
_NORMS = {"post_attention_layernorm": "mlp_norm"}
_GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "post_mlp_norm",
}
_MLP = {
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
    "mlp.gate": "mlp.router",
    "block_sparse_moe.gate": "mlp.router",
    "mlp.shared_expert.gate_proj": "mlp.shared.gate",
    "mlp.shared_expert.up_proj": "mlp.shared.up",
    "mlp.shared_expert.down_proj": "mlp.shared.down",
    "mlp.shared_expert_gate": "mlp.shared_gate",
}
_OUTSIDE = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d{1,4})\.(\w+)")
_EXPERT_PARTS = {
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
}
_LAYER = re.compile(r"layers\.(\d{1,4})\.(.+?)(?:\.(weight|bias))?")
_MODEL = {"embed_tokens.weight": "embedding", "norm.weight": "final_norm", "lm_head.weight": "head"}
_PREFIX = re.compile(r"^(?:model\.language_model\.|language_model\.model\.|language_model\.|model\.)")
# Tensors of a checkpoint that the decoder does not need: the vision half of Gemma 3, and tables that are
# computed.
_SKIPPED = re.compile(r"^(?:model\.)?(?:vision_tower|multi_modal_projector)\.|\.rotary_emb\.inv_freq$")
# Small matrices whose rounding would change which experts a token meets: kept as they are.
_EXACT = (".router", ".shared_gate")


@dataclass(frozen=True)
class _Place:
    """A tensor and the decoder parts that it holds: one, or those of all experts (`gate` above `up` where
    fused).
    """

    entry: TensorEntry
    names: tuple[str, ...]
    fused: bool = False


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
        self.entries = self._entries()
        self._places = self._check()

    def weights(self, dtype: DType | None = None) -> Iterator[Weight]:
        """Every part once. `dtype` None packs matrices as bf16; float32 and bfloat16 give plain linears."""
        reader = TensorReader()
        for place in self._places:
            if place.fused:
                yield from self._fused(reader, place, dtype)
            else:
                yield _stored(place.entry, place.names[0], reader.read(place.entry), dtype)

    def stored(self) -> list[StoredTensor]:
        """What the files hold of the decoder; no weight is read."""
        entries = ((place.names, place.entry) for place in self._places)
        return [StoredTensor(names, entry.dtype, entry.shape, entry.nbytes) for names, entry in entries]

    def samples(self) -> Iterator[Weight]:
        """The first part of the smallest matrix of every tensor type, as `weights` gives it."""
        reader, wanted = TensorReader(), {tensor.names[0] for tensor in smallest(self.stored())}
        for place in self._places:
            if place.names[0] in wanted and place.fused:
                yield next(self._fused(reader, place, None))
            elif place.names[0] in wanted:
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
        for tensor, name in _weight_map(self.path).items():
            if tensor not in held[name]:
                raise CheckpointError(f"{self.path / INDEX}: tensor {tensor!r:.120} is not in {name!r}.")
            entries[tensor] = held[name][tensor]
        return entries

    def _check(self) -> list[_Place]:
        """Every tensor's place; raises where one is missing, extra, or of the wrong shape or type."""
        wanted = [entry for name, entry in self.entries.items() if not _SKIPPED.search(name)]
        self._check_size(wanted)
        expected = parts(self.config)
        places = [place for entry in wanted if (place := self._place(entry, expected)) is not None]
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
        names, fused = self._part_names(entry)
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

    def _part_names(self, entry: TensorEntry) -> tuple[tuple[str, ...], bool]:
        """The decoder parts inside a tensor, in the order of its rows, and whether it holds those of all
        experts.
        """
        name = _PREFIX.sub("", entry.name)
        if name in _MODEL:
            return (_MODEL[name],), False
        match = _LAYER.fullmatch(name)
        if match is None:
            return (), False
        layer, inner, kind = f"layers.{int(match[1])}.", match[2], match[3]
        if kind is None and len(entry.shape) == 3 and self.config.experts:
            return self._fused_names(layer, inner), True
        part = self._layer_part(inner)
        if part is None or kind is None:
            return (), False
        return (f"{layer}{part}{'.bias' if kind == 'bias' else ''}",), False

    def _layer_part(self, inner: str) -> str | None:
        norms = _GEMMA_NORMS if self.config.post_norms else _NORMS
        expert = _EXPERT.fullmatch(inner)
        if expert is not None and expert[2] in _EXPERT_PARTS:
            return f"mlp.experts.{_EXPERT_PARTS[expert[2]]}.{int(expert[1])}"
        return _ATTENTION.get(inner) or norms.get(inner) or _MLP.get(inner)

    def _fused_names(self, layer: str, inner: str) -> tuple[str, ...]:
        kinds = {"mlp.experts.gate_up_proj": ("gate", "up"), "mlp.experts.down_proj": ("down",)}.get(inner, ())
        count = self.config.experts.count if self.config.experts else 0
        return tuple(f"{layer}mlp.experts.{kind}.{index}" for index in range(count) for kind in kinds)

    def _is_embedding(self, entry: TensorEntry) -> bool:
        return self._part_names(entry)[0] == ("embedding",)


def _check_tied(head: TensorEntry, embedding: TensorEntry) -> None:
    """A head beside tied embeddings is allowed where it is the embedding; which of two to use is not a guess."""
    reader = TensorReader()
    is_alike = (embedding.shape, embedding.dtype) == (head.shape, head.dtype)
    if not is_alike or not np.array_equal(reader.read(embedding), reader.read(head)):
        reason = "differs from the embedding, but tie_word_embeddings is true"
        remedy = "Set it to false in config.json to use this tensor as the head, or remove the tensor"
        raise CheckpointError(f"{head.path}: tensor {head.name!r} {reason}. {remedy} to use the embedding.")


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises CheckpointError with the way out where there are none."""
    if (directory / INDEX).is_file():
        names = sorted(set(_weight_map(directory).values()))
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


def read_config(directory: Path) -> ModelConfig:
    """`config.json`, with the end-of-text ids of `generation_config.json` added where there is one."""
    config = from_huggingface(read_json(directory / "config.json"))
    path = directory / "generation_config.json"
    if not path.is_file():
        return config
    generation = Fields(read_json(path), "generation_config.")
    ends = dict.fromkeys((*config.eos_ids, *generation.token_ids("eos_token_id", TOKEN_LIMIT)))
    starts = config.bos_ids or generation.token_ids("bos_token_id", TOKEN_LIMIT)
    return replace(config, eos_ids=tuple(ends), bos_ids=starts)


def _weight_map(directory: Path) -> dict[str, str]:
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


def llama_name(parameter: str) -> str:
    """What a plain Llama of transformers calls a decoder's parameter, such as `layers.0.mlp.gate.weight`: the inverse
    of what is read here.
    """
    path, _, leaf = parameter.rpartition(".")
    if path in _OUTSIDE:
        return f"{_OUTSIDE[path]}.{leaf}"
    _, layer, part = path.split(".", 2)
    inner = next(name for name, ours in (_ATTENTION | _NORMS | _MLP).items() if ours == part)
    return f"model.layers.{layer}.{inner}.{leaf}"


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
    if dtype is not None or name.endswith(_EXACT):
        plain = rounded(name, tensor, np.dtype(np.float32 if dtype is None else dtype))
        return Weight(name, DenseLinear.from_weight(plain, plain.dtype), origin)
    stored = rounded(name, tensor, BFLOAT16)
    error, largest = (0.0, 0.0) if origin == "BF16" else _difference(tensor, stored)
    return Weight(name, DenseLinear.from_weight(stored, BFLOAT16, packed=True), origin, error, largest)


def _difference(exact: Array, stored: Array) -> tuple[float, float]:
    """Relative root-mean-square and largest absolute difference."""
    deviation = Deviation()
    for start in range(0, len(exact), ROWS_AT_A_TIME):
        part = slice(start, start + ROWS_AT_A_TIME)
        deviation.add(exact[part].astype(np.float32), stored[part].astype(np.float32))
    return deviation.relative, deviation.largest
