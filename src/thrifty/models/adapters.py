"""Adapters: low-rank additions to a model's linears, and how the directories that PEFT writes become them.

y = W x + scale · up (down x), LoRA (arXiv 2106.09685, §4.1): scale is alpha / r, or alpha / √r where the rank is to be
stabilised (rsLoRA, arXiv 2312.03732, §3).
"""

from __future__ import annotations

import hashlib
import math
import numbers
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from thrifty.arrays import Floats, frozen
from thrifty.errors import CheckpointError
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.huggingface.names import part_names
from thrifty.models.huggingface.safetensors_file import TensorEntry, TensorReader, read_entries, read_json
from thrifty.models.parts import parts

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_RANK = 4096
_ADAPTABLE = re.compile(r"layers\.\d+\.(attention\.(query|key|value|output)|mlp(\.shared)?\.(gate|up|down))")
_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)\.(?:default\.)?weight")
_PLAIN_NAME = re.compile(r"\^?[\w.]{1,200}")
# Fields of adapter_config.json that say nothing of the result: how it was trained, and where the tensors say it too.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "lora_dropout",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights",
    "fan_in_fan_out", "peft_version", "runtime_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "megatron_core", "ensure_weight_tying",
    "qalora_group_size",  # written always, read where use_qalora is set
}  # fmt: skip
# Starting points that change the base weights too.
_OTHER_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")


@dataclass(frozen=True, eq=False)
class Adapter:
    """A low-rank addition to chosen linears, y += scale · up (down x).

    weights: name of a linear → (down fp32 [rank, in], up fp32 [out, rank]); experts, routers, embedding and head take
    none. scale: of every linear, but of those in `scales`. Its matrices are read-only: copies, where somebody could
    write to them. It is the same adapter only as itself: two of the same content are two, with one `version`.
    """

    weights: Mapping[str, tuple[Floats, Floats]]
    scale: float = 1.0
    scales: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        copies: dict[int, Any] = {}  # linears that share a matrix go on sharing it

        def copied(matrix: Any) -> Any:
            if not isinstance(matrix, np.ndarray):
                return matrix
            return copies.setdefault(id(matrix), frozen(matrix))

        if isinstance(self.weights, Mapping) and all(isinstance(pair, tuple | list) for pair in self.weights.values()):
            weights = {name: tuple(copied(matrix) for matrix in pair) for name, pair in self.weights.items()}
            object.__setattr__(self, "weights", MappingProxyType(weights))
        if isinstance(self.scales, Mapping):
            object.__setattr__(self, "scales", MappingProxyType(dict(self.scales)))

    def scale_of(self, name: str) -> float:
        """The factor of a linear's addition."""
        return self.scales.get(name, self.scale)

    @property
    def nbytes(self) -> int:
        """Bytes of its matrices; one that several linears share counts once."""
        matrices = {id(matrix): matrix.nbytes for pair in self.weights.values() for matrix in pair}
        return sum(matrices.values())

    @property
    def rank(self) -> int:
        """The greatest of any linear; 0 without any."""
        return max((len(down) for down, _ in self.weights.values()), default=0)

    @cached_property
    def version(self) -> str:
        """A hash of its content: what is computed with one version is worthless for another."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            down, up = self.weights[name]
            digest.update(f"{name} {down.shape} {up.shape} {self.scale_of(name)!r}\n".encode())
            digest.update(np.ascontiguousarray(down).tobytes())
            digest.update(np.ascontiguousarray(up).tobytes())
        return digest.hexdigest()


def adaptable(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The linears that take adapters, by name: their shapes [out, in]."""
    return {name: shape for name, shape in parts(config).items() if _ADAPTABLE.fullmatch(name)}


def check_adapter(adapter: Adapter, config: ModelConfig) -> None:
    """Raise CheckpointError where an adapter does not fit the model, or holds what is no finite number: the linear,
    what it needs and what is given.
    """
    shapes, weights = adaptable(config), adapter.weights
    if not isinstance(weights, Mapping) or not isinstance(adapter.scales, Mapping):
        raise CheckpointError(
            "weights and scales of an adapter are mappings; use {linear: (down, up)}, {linear: scale}."
        )
    if not weights:
        raise CheckpointError("the adapter holds no matrices; leave it out.")
    for name in (*weights, *adapter.scales):
        if name not in shapes:
            raise CheckpointError(f"{name!r:.80} takes no adapter; linears of attention and of dense MLPs do.")
    for name, pair in weights.items():
        _check_pair(name, pair, shapes[name])
        scale = adapter.scale_of(name)
        if isinstance(scale, bool) or not isinstance(scale, numbers.Real) or not math.isfinite(scale):
            raise CheckpointError(f"the scale of {name} is {scale!r:.80}; use a finite number.")


def _check_pair(name: str, pair: Any, shape: tuple[int, ...]) -> None:
    """Raise CheckpointError where `pair` is no (down, up) for a linear of `shape` [out, in]."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise CheckpointError(f"the adapter of {name} is {pair!r:.80}; use two float32 arrays, (down, up).")
    rank = len(pair[0]) if np.ndim(pair[0]) else 0
    for what, matrix, wanted in (("down", pair[0], (rank, shape[1])), ("up", pair[1], (shape[0], rank))):
        fits = isinstance(matrix, np.ndarray) and matrix.dtype == np.float32 and matrix.shape == wanted
        if not fits or not 1 <= rank <= MOST_RANK:
            given = f"{matrix.dtype} {list(matrix.shape)}" if isinstance(matrix, np.ndarray) else f"{matrix!r:.80}"
            raise CheckpointError(
                f"{what} of {name} is {given}; expected float32 {list(wanted)} of rank 1 to {MOST_RANK}."
            )
        if not np.isfinite(matrix).all():
            raise CheckpointError(f"{what} of {name} holds values that are not finite; check what made them.")


def load_adapter(path: str | os.PathLike[str], config: ModelConfig) -> Adapter:
    """`open_adapter`, loaded."""
    return open_adapter(path, config).load()


def open_adapter(path: str | os.PathLike[str], config: ModelConfig) -> AdapterFile:
    """The LoRA adapter of a directory that PEFT wrote: adapter_config.json and adapter_model.safetensors.

    Raises CheckpointError naming the field or tensor that is missing, does not fit the model, or asks for what is not
    done (DoRA, biases, modules_to_save).
    """
    directory = Path(path)
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is no directory; give the one that holds {CONFIG} and {WEIGHTS}.")
    settings = _Settings(directory / CONFIG, read_json(directory / CONFIG))
    entries = read_entries(directory / WEIGHTS)
    modules, given = [], set[str]()
    for module, (lower, upper) in _pairs(directory / WEIGHTS, entries).items():
        names = _names(lower, module, config)
        rank, scale = settings.of(module)
        _check_shapes(lower, upper, names, rank, config)
        for name in names:
            if name in given:
                raise CheckpointError(f"{directory / WEIGHTS}: {module!r:.120} gives {name} a second pair of matrices.")
        given.update(names)
        modules.append(_Module(lower, upper, names, scale))
    return AdapterFile(tuple(modules), config)


@dataclass(frozen=True)
class _Module:
    """A module of a file: its tensors lora_A and lora_B, the linears that it is in the order of its rows, its scale."""

    lower: TensorEntry
    upper: TensorEntry
    names: tuple[str, ...]
    scale: float


@dataclass(frozen=True)
class AdapterFile:
    """An adapter of a directory, checked by its settings and its header: no matrix is read before `load`."""

    modules: tuple[_Module, ...]
    config: ModelConfig

    @property
    def nbytes(self) -> int:
        """Bytes of the adapter's matrices, which are fp32 whatever the file holds."""
        return sum(4 * math.prod(entry.shape) for module in self.modules for entry in (module.lower, module.upper))

    @property
    def rank(self) -> int:
        """See Adapter."""
        return max((module.lower.shape[0] for module in self.modules), default=0)

    def load(self) -> Adapter:
        """The adapter. Raises CheckpointError naming the tensor that cannot be read or holds no finite numbers."""
        weights: dict[str, tuple[Floats, Floats]] = {}
        scales: dict[str, float] = {}
        for module in self.modules:
            for name, matrices in _matrices(module.lower, module.upper, module.names, self.config).items():
                weights[name], scales[name] = matrices, module.scale
        adapter = Adapter(weights, scales=scales)
        check_adapter(adapter, self.config)
        return adapter


class _Settings:
    """Ranks and scales of adapter_config.json."""

    def __init__(self, path: Path, data: Any) -> None:
        self._path = path
        if not isinstance(data, Mapping):
            raise CheckpointError(f"{path} is not a table.")
        self._refuse_others(data)
        self._rank = self._number("r", data.get("r"), 1, MOST_RANK, whole=True)
        self._alpha = self._number("lora_alpha", data.get("lora_alpha", 8), -1e6, 1e6)
        self._stabilised = self._flag("use_rslora", data.get("use_rslora"))
        self._ranks = self._pattern("rank_pattern", data.get("rank_pattern"), 1, MOST_RANK, whole=True)
        self._alphas = self._pattern("alpha_pattern", data.get("alpha_pattern"), -1e6, 1e6)

    def of(self, module: str) -> tuple[int, float]:
        """Rank and scale of a module, by its name in the checkpoint that was adapted."""
        rank = self._of(self._ranks, module, self._rank)
        alpha = self._of(self._alphas, module, self._alpha)
        return int(rank), alpha / (math.sqrt(rank) if self._stabilised else rank)

    def _refuse_others(self, data: Mapping[str, Any]) -> None:
        kind, start = data.get("peft_type"), data.get("init_lora_weights")
        if kind != "LORA":
            raise CheckpointError(f"{self._path}: peft_type is {kind!r:.80}; LORA is what is done.")
        if data.get("bias") not in (None, "none"):
            raise CheckpointError(f"{self._path}: bias is {data['bias']!r:.80}; train the adapter with bias='none'.")
        if isinstance(start, str) and start.lower().startswith(_OTHER_BASE):
            raise CheckpointError(
                f"{self._path}: init_lora_weights is {start!r:.80}, which changes the base weights as well; save the "
                "adapter with path_initial_model_for_weight_conversion, which makes a plain LoRA of it."
            )
        known = {"peft_type", "bias", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"} | _HARMLESS
        for name in sorted(set(data) - known):
            if name.startswith("use_"):
                self._flag(name, data[name])
            if data[name]:
                raise CheckpointError(
                    f"{self._path}: {name} is {data[name]!r:.80}, which is not done; merge the adapter into its model "
                    "(merge_and_unload) and load that, or train it without."
                )

    def _flag(self, name: str, value: Any) -> bool:
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{self._path}: {name} is {value!r:.80}; it must be true or false.")
        return bool(value)

    def _number(self, name: str, value: Any, low: float, high: float, whole: bool = False) -> float:
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            kind = ", a whole number" if whole else ""
            raise CheckpointError(f"{self._path}: {name} is {value!r:.80}; it must be from {low} to {high}{kind}.")
        return value

    def _pattern(self, name: str, value: Any, low: float, high: float, whole: bool = False) -> dict[str, float]:
        if not value:
            return {}
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{self._path}: {name} is {value!r:.80}; it must be a table.")
        for key in value:
            if not _PLAIN_NAME.fullmatch(key):
                raise CheckpointError(
                    f"{self._path}: {name} has the key {key!r:.80}; names of modules are read, no regular expressions."
                )
        return {key: self._number(f"{name}.{key}", number, low, high, whole) for key, number in value.items()}

    @staticmethod
    def _of(pattern: Mapping[str, float], module: str, default: float) -> float:
        """The value of the first key that is the module's name, or its end behind a dot."""
        for key, value in pattern.items():
            plain = key.removeprefix("^")
            if module == plain or (key == plain and module.endswith(f".{plain}")):
                return value
        return default


def _pairs(path: Path, entries: Mapping[str, TensorEntry]) -> dict[str, tuple[TensorEntry, TensorEntry]]:
    """By module both of its tensors, lora_A [rank, in] and lora_B [out, rank]."""
    pairs: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in entries.items():
        match = _TENSOR.fullmatch(name)
        if match is None or len(entry.shape) != 2:
            raise CheckpointError(
                f"{path}: tensor {name!r:.120} is none of a LoRA of linears (…lora_A.weight, …lora_B.weight)."
            )
        tensors = pairs.setdefault(match[1], {})
        if match[2] in tensors:
            raise CheckpointError(
                f"{path}: {tensors[match[2]].name!r:.120} and {name!r:.120} are one tensor; keep one."
            )
        tensors[match[2]] = entry
    for module, tensors in pairs.items():
        if len(tensors) != 2:
            raise CheckpointError(f"{path}: {module!r:.120} has lora_{next(iter(tensors))} alone; both are needed.")
    return {module: (tensors["A"], tensors["B"]) for module, tensors in pairs.items()}


def _names(entry: TensorEntry, module: str, config: ModelConfig) -> tuple[str, ...]:
    """The linears of a module, in the order of its rows. Raises CheckpointError where it has none that is adapted."""
    names, _ = part_names(f"{module}.weight", 2, config)
    known = adaptable(config)
    if not names or any(name not in known for name in names):
        raise CheckpointError(
            f"{entry.path}: {module!r:.120} takes no adapter here; linears of attention and of dense MLPs do."
        )
    return names


def _check_shapes(
    lower: TensorEntry, upper: TensorEntry, names: tuple[str, ...], rank: int, config: ModelConfig
) -> None:
    """Raise CheckpointError where a module's tensors are not of the model's shapes and of its rank."""
    shapes = adaptable(config)
    rows, columns = sum(shapes[name][0] for name in names), shapes[names[0]][1]
    for entry, shape in ((lower, (rank, columns)), (upper, (rows, rank))):
        if entry.shape != shape:
            raise CheckpointError(
                f"{entry.path}: tensor {entry.name!r:.120} is {list(entry.shape)}; this model and its rank of {rank} "
                f"need {list(shape)}."
            )


def _matrices(
    lower: TensorEntry, upper: TensorEntry, names: tuple[str, ...], config: ModelConfig
) -> dict[str, tuple[Floats, Floats]]:
    """By linear its two matrices; linears that are one module share `down`."""
    shapes = adaptable(config)
    down, up = (_values(entry) for entry in (lower, upper))
    split = np.cumsum([shapes[name][0] for name in names])[:-1]
    return {name: (down, np.ascontiguousarray(part)) for name, part in zip(names, np.split(up, split), strict=True)}


def _values(entry: TensorEntry) -> Floats:
    values: Floats = np.array(TensorReader().read(entry), np.float32, order="C")
    if not np.isfinite(values).all():
        raise CheckpointError(f"{entry.path}: tensor {entry.name!r:.120} holds values that are not finite.")
    values.flags.writeable = False
    return values
