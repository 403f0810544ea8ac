"""Linears that share what they read, and what writes it: the places where a factor can move from one to the other.

A decoder has three kinds of them, and the function stays as it is where a channel is divided on one side and multiplied
on the other:

- "norm": a norm, and the linears that read its output;
- "value": the value projection, and the attention's output projection: attention mixes tokens, never channels;
- "neurons": the up projection of a gated MLP (or of one expert), and its down projection.

SmoothQuant (2211.10438, eq. 3 and 4), AWQ (2306.00978, eq. 4 and 5) and the rotations of QuaRot (2404.00456, §4) are
such changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.errors import RecipeError
from thrifty.formats.linear import DenseLinear, PackedLinear
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.model import Model
from thrifty.weights.structure import LinearInfo

Replacement = tuple[str, PackedLinear | Floats]
"""The name of a linear, a norm or a norm's bias, and what takes its place: a linear, or fp32 [width]."""


@dataclass(frozen=True)
class NormInfo:
    """A norm of the hidden state. weight: fp32 [hidden] as stored, without `offset`. bias: fp32 [hidden], or None."""

    name: str
    weight: Floats
    bias: Floats | None
    offset: float


@dataclass(frozen=True)
class LinearGroup:
    """Linears that read the same channels, and what writes these.

    source: a norm, or a linear. readers: in the decoder's order, each [out, columns]. channels: int64 [columns], the
    channel of the source that a column reads (query heads of a group share a value head, so one can be read twice).
    """

    kind: Literal["norm", "value", "neurons"]
    layer: int | None
    source: NormInfo | LinearInfo
    readers: tuple[LinearInfo, ...]
    channels: Integers

    @property
    def width(self) -> int:
        """Channels of the source."""
        return len(self.source.weight) if isinstance(self.source, NormInfo) else self.source.linear.out_features

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that may be replaced: the source, with its bias where it is a norm that has one, and the readers."""
        source = self.source
        bias = (f"{source.name}.bias",) if isinstance(source, NormInfo) and source.bias is not None else ()
        return (source.name, *bias, *(reader.name for reader in self.readers))


def groups(model: Model) -> Iterator[LinearGroup]:
    """Every group in the decoder's order, as the model is when its turn comes: each may be changed before the next.

    A norm whose readers write it back (tied embeddings behind the last norm) is in no group, and neither are readers
    behind an activation.
    """
    for layer in range(len(model.config.layers)):
        yield from layer_groups(model, layer)
    if "head" in model.linears:
        readers = (LinearInfo("head", model.linears["head"]),)
        yield LinearGroup("norm", None, _norm(model, "final_norm"), readers, _hidden(model))


def layer_groups(model: Model, layer: int) -> Iterator[LinearGroup]:
    """The groups of one layer of the decoder, as `groups` gives them."""
    place, hidden = f"layers.{layer}", _hidden(model)
    attention = f"{place}.attention"
    yield from _behind_norm(model, layer, f"{place}.attention_norm", f"{attention}.", hidden)
    if f"{attention}.value" in model.linears:
        channels = _value_channels(model.config, layer)
        yield _pair(model, "value", layer, f"{attention}.value", f"{attention}.output", channels)
    yield from _behind_norm(model, layer, f"{place}.mlp_norm", f"{place}.mlp.", hidden)
    if model.config.mlp == "gated":
        yield from _neurons(model, layer)


def rescaled(group: LinearGroup, scale: Floats) -> Iterator[Replacement]:
    """The group with the source's channels divided by scale, fp32 [width], and the readers' columns multiplied by it.

    The same function, within the rounding of fp32: what was packed becomes plain fp32, one linear at a time, for a
    technique behind it to store. Raises RecipeError for a scale of another shape, or one that is not above zero.
    """
    if scale.shape != (group.width,) or not (np.isfinite(scale) & (scale > 0)).all():
        raise RecipeError(
            f"a scale of '{group.source.name}' must be {group.width} finite numbers above 0; it has shape "
            f"{list(scale.shape)}, the least {float(scale.min()) if scale.size else 0.0:g}"
        )
    scale = scale.astype(np.float32)
    yield from _divided(group.source, scale)
    for reader in group.readers:
        weight = reader.linear.dequantize() * scale[group.channels]
        yield reader.name, DenseLinear.from_weight(weight, bias=reader.linear.bias)


def _divided(source: NormInfo | LinearInfo, scale: Floats) -> Iterator[Replacement]:
    if isinstance(source, NormInfo):
        yield source.name, ((source.weight + source.offset) / scale - source.offset).astype(np.float32)
        if source.bias is not None:
            yield f"{source.name}.bias", source.bias / scale
        return
    linear = source.linear
    bias = None if linear.bias is None else linear.bias / scale
    yield source.name, DenseLinear.from_weight(linear.dequantize() / scale[:, None], bias=bias)


def _behind_norm(model: Model, layer: int, norm: str, prefix: str, hidden: Integers) -> Iterator[LinearGroup]:
    """The group of a norm in front of attention or MLP, where there is one."""
    if norm not in model.norms:
        return
    inside = ("output", "down")  # they read what the branch makes
    infos = (LinearInfo(name, linear) for name, linear in model.linears.items() if name.startswith(prefix))
    readers = tuple(info for info in infos if info.role not in inside)
    if readers:
        yield LinearGroup("norm", layer, _norm(model, norm), readers, hidden)


def _neurons(model: Model, layer: int) -> Iterator[LinearGroup]:
    """Up and down of the MLP, of every expert and of the shared one."""
    prefix = f"layers.{layer}.mlp."
    for name in [name for name in model.linears if name.startswith(prefix)]:
        if LinearInfo(name, model.linears[name]).role == "up":
            down = ".".join("down" if part == "up" else part for part in name.split("."))
            channels = np.arange(model.linears[name].out_features, dtype=np.int64)
            yield _pair(model, "neurons", layer, name, down, channels)


def _pair(
    model: Model, kind: Literal["value", "neurons"], layer: int, source: str, reader: str, channels: Integers
) -> LinearGroup:
    readers = (LinearInfo(reader, model.linears[reader]),)
    return LinearGroup(kind, layer, LinearInfo(source, model.linears[source]), readers, channels)


def _norm(model: Model, name: str) -> NormInfo:
    return NormInfo(name, model.norms[name], model.norms.get(f"{name}.bias"), model.config.norm_offset)


def _hidden(model: Model) -> Integers:
    """The channels of the hidden state, each read once."""
    return np.arange(model.config.hidden_size, dtype=np.int64)


def _value_channels(config: ModelConfig, layer: int) -> Integers:
    """Of each column of the output projection [heads · head_dim], the channel of the values [kv_heads · head_dim]."""
    heads, kv_heads, size = config.widths(layer)
    head, channel = np.divmod(np.arange(heads * size, dtype=np.int64), size)
    return head // (heads // kv_heads) * size + channel
