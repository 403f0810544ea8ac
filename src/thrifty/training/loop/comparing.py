"""What becomes of a model's predictions when some of its linears are exchanged."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from thrifty.arrays import Integers
from thrifty.formats.linear import PackedLinear
from thrifty.models.model import Model
from thrifty.reference.arrays import tensor_of
from thrifty.reference.linear import Linear
from thrifty.reference.loading import build
from thrifty.training.loop.forward import logits_of
from thrifty.training.loop.losses import divergence


class Compared:
    """A model's predictions on sequences int64 [sequences, tokens], against those with other linears in it."""

    def __init__(self, model: Model, sequences: Integers) -> None:
        self._model, self._tokens = model, tensor_of(sequences)
        self._decoder = build(model).decoder.requires_grad_(False)
        with torch.no_grad():
            self._wanted = logits_of(self._decoder, self._tokens)

    @torch.no_grad()
    def divergence(self, linears: Mapping[str, PackedLinear]) -> float:
        """KL(as it is ‖ with these linears) of the next token, mean in nats."""
        for name, linear in linears.items():
            self._decoder.replace(name, Linear(linear))
        try:
            return float(divergence(logits_of(self._decoder, self._tokens), self._wanted))
        finally:
            for name in linears:
                self._decoder.replace(name, Linear(self._model.linears[name]))
