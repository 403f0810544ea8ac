"""A model as a row of linear layers, each with its name and place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from thrifty.formats.linear import PackedLinear
from thrifty.models.model import Model


@dataclass(frozen=True)
class LinearInfo:
    """One linear layer and its place in the decoder.

    name: such as "layers.3.attention.query" or "layers.0.mlp.experts.gate.7". layer: None outside the layers.
    branch: the part of the layer, such as "attention", "recurrent" or "mlp"; None outside the layers. role: the last
    word of the name: query, key, value, output, gate, up, down, router, embedding, head …
    """

    name: str
    linear: PackedLinear

    @property
    def layer(self) -> int | None:
        return self.layer_of(self.name)

    @staticmethod
    def layer_of(name: str) -> int | None:
        """The layer that a part belongs to, by its name."""
        parts = name.split(".")
        return int(parts[1]) if parts[0] == "layers" else None

    @property
    def branch(self) -> str | None:
        parts = self.name.split(".")
        return parts[2] if parts[0] == "layers" else None

    @property
    def kind(self) -> str:
        """The name without its numbers, such as "layers.mlp.experts.gate": the same in every layer and expert."""
        return ".".join(part for part in self.name.split(".") if not part.isdigit())

    @property
    def role(self) -> str:
        return next(part for part in reversed(self.name.split(".")) if not part.isdigit())


def linears(model: Model) -> Iterator[LinearInfo]:
    """Every linear layer in the decoder's order, one at a time; the model may replace each as it comes."""
    for name in list(model.linears):
        yield LinearInfo(name, model.linears[name])
