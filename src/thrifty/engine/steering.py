"""What a request asks of layers: states to read (taps) and vectors to add (steering), checked as callers give them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from thrifty.arrays import Floats, frozen, squares_fit
from thrifty.decoding.option_values import as_integer, shown, token_ids
from thrifty.errors import PromptError
from thrifty.models.config.model_config import ModelConfig


def layer_numbers(name: str, value: Any) -> tuple[int, ...]:
    """Layers, rising, each once. Raises PromptError for what is none."""
    layers = token_ids(name, value)
    if any(layer < 0 for layer in layers):
        raise PromptError(f"{name} = {shown(value)}; layers are numbered from 0")
    return tuple(sorted(set(layers)))


class Steering(Mapping[int, Floats]):
    """Layer → fp32 [hidden]; neither it nor its vectors change."""

    def __init__(self, vectors: Mapping[int, Floats]) -> None:
        self._vectors = dict(vectors)

    def __getitem__(self, layer: int) -> Floats:
        return self._vectors[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    @cached_property
    def key(self) -> str:
        """See `steering_key`."""
        digest = hashlib.sha256()
        for layer in sorted(self):
            digest.update(f"{layer}:".encode() + self[layer].tobytes())
        return digest.hexdigest()


def steering_vectors(value: Any) -> Steering:
    """Layer → fp32 [hidden], copied and read-only. Raises PromptError for other layers, types and shapes, and where a
    vector's squares have no finite sum in fp32: no norm could take it.
    """
    if not isinstance(value, Mapping):
        raise PromptError(f"steering = {shown(value)} is no mapping; use {{layer: float32 array [hidden size]}}")
    vectors = {}
    for layer, vector in value.items():
        number = as_integer(layer)
        if number is None or number < 0:
            raise PromptError(f"steering has the layer {shown(layer)}; use whole numbers of at least 0")
        vectors[number] = _vector(number, vector)
    return Steering(vectors)


def check_layers(taps: Sequence[int], steering: Mapping[int, Floats], config: ModelConfig) -> None:
    """Raise PromptError where the model has no such layer, or is not of that width."""
    count, width = len(config.layers), config.hidden_size
    for name, layers in (("taps", taps), ("steering", steering)):
        for layer in layers:
            if layer >= count:
                raise PromptError(f"{name} names layer {layer}; this model has layers 0 to {count - 1}")
    for layer, vector in steering.items():
        if len(vector) != width:
            raise PromptError(f"steering of layer {layer} has {len(vector)} numbers; this model's states have {width}")


def steering_key(steering: Mapping[int, Floats]) -> str:
    """What tells the keys and values of a steered prompt from others; "" where nothing is added."""
    if not steering:
        return ""
    return steering.key if isinstance(steering, Steering) else Steering(steering).key


def _vector(layer: int, value: Any) -> Floats:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # rows of several lengths, a tensor that keeps a gradient
        array = np.empty(0, object)
    if array.dtype.kind != "f" or array.ndim != 1 or not np.isfinite(array).all():
        raise PromptError(f"steering of layer {layer} is {shown(value)}; use finite numbers [hidden size]")
    with np.errstate(over="ignore"):
        vector: Floats = array.astype(np.float32)
    if not squares_fit(vector):
        raise PromptError(
            f"steering of layer {layer} is {shown(value)}: its squares have no finite sum in fp32; use a shorter vector"
        )
    return frozen(vector)
