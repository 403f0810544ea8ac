"""A decoder as a tree of linear layers: naming them, and copying the tree without copying weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from thrifty.errors import CheckpointError
from thrifty.formats.linear import PackedLinear
from thrifty.models.decoder import Decoder

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class LinearInfo:
    """One linear layer and its place in the decoder.

    name: such as "layers.3.attention.query" or "layers.0.mlp.experts.gate.7". layer: None outside the layers.
    role: the last word of the name: query, key, value, output, gate, up, down, router, embedding, head …
    """

    name: str
    linear: PackedLinear

    @property
    def layer(self) -> int | None:
        parts = self.name.split(".")
        return int(parts[1]) if parts[0] == "layers" else None

    @property
    def role(self) -> str:
        return next(part for part in reversed(self.name.split(".")) if not part.isdigit())


def linears(decoder: Decoder) -> Iterator[LinearInfo]:
    """Every linear layer in the decoder's order, one at a time; the decoder may replace each as it comes.

    Raises CheckpointError where one is not loaded.
    """
    for name in [name for name, _ in decoder.linears()]:
        module = decoder.get_submodule(name)
        if not isinstance(module, PackedLinear):
            raise CheckpointError(f"{name!r} is not loaded: load the model before compressing it")
        yield LinearInfo(name, module)


def share(module: Module) -> Module:
    """A copy of the module tree that shares every tensor: replacing a part changes the copy only."""
    twin = copy.copy(module)
    twin.__dict__["_parameters"] = dict(module._parameters)
    twin.__dict__["_buffers"] = dict(module._buffers)
    twin.__dict__["_modules"] = {
        name: None if child is None else share(child) for name, child in module._modules.items()
    }
    return twin
