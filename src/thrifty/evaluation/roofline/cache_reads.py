"""What a layer's cache holds and a decode step reads of it: slots and bytes, exact for the full cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.cache.footprint import RUN, footprint
from thrifty.cache.model_info import LayerGroup, ModelInfo, Widths
from thrifty.cache.policy import CachePolicy
from thrifty.engine.model_info import widths_of
from thrifty.engine.runner import CHUNK
from thrifty.formats import kv
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from thrifty.evaluation.roofline.sizes import ModelSizes

APPENDED = 256  # prompt tokens that are reserved for at once, the engine's default


@dataclass(frozen=True)
class LayerCache:
    """One layer of one sequence. slots: tokens a query attends to. nbytes: what holds them (or a recurrent state)."""

    slots: int
    nbytes: int


def model_info(sizes: ModelSizes) -> ModelInfo:
    """What the cache must know of a model, as the engine tells it."""
    config = sizes.config
    return ModelInfo(
        widths=widths_of(config),
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        windows=tuple(layer.window for layer in config.layers),
        states=config.states,
        format="f32" if sizes.plain else "bf16",
        chunk=APPENDED,
    )


def held(info: ModelInfo, policies: Sequence[CachePolicy], length: int) -> list[LayerCache]:
    """Every layer's cache after a prompt of `length` tokens.

    To the byte for the full cache: whole pages of 64 tokens, the layers of one window in one run a page. A policy's
    slots are its own bound (`kept`, `stored`), so real bytes are at most a page or two a head below.
    """
    layers: list[LayerCache | None] = [None] * info.layers
    compressed = [policy for policy in policies if policy.compresses]
    for index in info.state_layers:
        layers[index] = LayerCache(0, 4 * info.states[index])
    for group in info.layer_groups():
        if group.window is None and compressed:
            widths = info.of(group.layers[0])
            reads = [_compressed(info, widths, compressed, length)] * len(group.layers)
        else:
            reads = _plain(info, group, length)
        for index, layer in zip(group.layers, reads, strict=True):
            layers[index] = layer
    return [layer for layer in layers if layer is not None]


def peak_bytes(info: ModelInfo, policies: Sequence[CachePolicy], length: int) -> int:
    """The most that one sequence's cache takes at any moment of a prompt: what admission reserves."""
    return footprint(policies, info, length, length).peak_bytes


def exact_bytes(info: ModelInfo, length: int) -> list[int]:
    """By layer, bytes of keys and values of `length` tokens as the prompt computes them."""
    widths = [info.of(layer) for layer in range(info.layers)]
    return [-(-length // PAGE) * own.kv_heads * kv.slab_bytes(info.format, PAGE, own.head_dim) for own in widths]


def _plain(info: ModelInfo, group: LayerGroup, length: int) -> list[LayerCache]:
    layers, window = len(group.layers), group.window
    slab = kv.slab_bytes(info.format, PAGE, group.head_dim) * group.kv_heads * layers
    pages = -(-length // PAGE)
    slots = length
    if window is not None:
        pages -= max(0, _rolled(length) - window + 1) // PAGE  # pages that no later token sees are gone
        slots = min(length, window)
    total = pages * (-(-slab // RUN) * RUN)
    return [LayerCache(slots, total * (index + 1) // layers - total * index // layers) for index in range(layers)]


def _rolled(length: int) -> int:
    """Tokens when a prompt's windows last let go of pages: with the last piece that filled a page."""
    rest = length % CHUNK
    return length - rest if rest < PAGE else length


def _compressed(info: ModelInfo, widths: Widths, policies: Sequence[CachePolicy], length: int) -> LayerCache:
    """One global layer right after its prompt was compressed."""
    slots = length
    for policy in policies:
        slots = min(slots, policy.kept(length, 0))
    quantiser = next((policy for policy in policies if policy.traits.quantises), None)
    codes = 0
    name = ""
    if quantiser is not None:
        bounds = quantiser.stored(slots)
        name = next(bound for bound in bounds if bound)
        codes = bounds[name]
        if codes < slots:  # what stays exact is the residual and up to a page more, half of that on average
            codes = max(0, codes - PAGE // 2) // PAGE * PAGE
    exact = slots - codes
    nbytes = -(-exact // PAGE) * widths.kv_heads * kv.slab_bytes(info.format, PAGE, widths.head_dim)
    if codes:
        nbytes += -(-codes // PAGE) * widths.kv_heads * kv.slab_bytes(name, PAGE, widths.head_dim)
    return LayerCache(slots, nbytes)
