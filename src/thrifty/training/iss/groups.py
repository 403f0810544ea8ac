"""The intrinsic sparse structures of an LSTM: which hidden units have a weight, and the LSTM without the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.errors import RecipeError
from thrifty.training.iss.lstm import GATES, LSTM, Layer


def group_norms(model: LSTM) -> list[Floats]:
    """‖w‖ of the group of each unit, fp32 [hidden] a layer (§3.1).

    Group k holds what makes unit k (the rows k of all four gates, of the incoming and the recurrent weight), and what
    reads it (column k of the recurrent weight, of the next layer's incoming weight or of the head). The numbers where
    rows k of the recurrent weight meet column k are in it once. Biases are in no group.
    """
    return [np.sqrt(_squares(layer, reader)) for layer, reader in zip(model.layers, _readers(model), strict=True)]


def living(model: LSTM) -> list[Integers]:
    """Units whose group is not all zeros, ascending, int64 a layer."""
    readers = zip(model.layers, _readers(model), strict=True)
    return [
        np.flatnonzero(_squares(_nonzero(layer), (reader != 0).astype(np.float32)) > 0) for layer, reader in readers
    ]


def with_units(model: LSTM, kept: Sequence[Integers]) -> LSTM:
    """The dense LSTM of the units `kept`, in their order, int64 a layer. It computes what the model did where the
    groups of all others are zeros.

    Raises RecipeError where a layer would keep none, or units that it does not have.
    """
    layers = list(model.layers)
    head = model.head
    for place, units in enumerate(kept):
        hidden = layers[place].hidden
        if not len(units) or int(np.max(units)) >= hidden or int(np.min(units)) < 0:
            raise RecipeError(
                f"layer {place} of {hidden} units cannot keep {len(units)} of them: keep 1 or more of its own; where "
                "training left none, use a smaller strength"
            )
        rows = (np.arange(GATES)[:, None] * hidden + units[None]).reshape(-1)
        own = layers[place]
        layers[place] = Layer(own.incoming[rows], own.recurrent[np.ix_(rows, units)], own.bias[rows])
        if place + 1 < len(layers):
            layers[place + 1] = replace(layers[place + 1], incoming=layers[place + 1].incoming[:, units])
        else:
            head = head[:, units]
    return replace(model, layers=layers, head=head)


def random_units(model: LSTM, sizes: Sequence[int], seed: int) -> list[Integers]:
    """As many units a layer as `sizes` says, drawn at random, ascending: the control."""
    chance = np.random.default_rng(seed)
    return [
        np.sort(chance.choice(layer.hidden, size, replace=False))
        for layer, size in zip(model.layers, sizes, strict=True)
    ]


def _readers(model: LSTM) -> list[Floats]:
    return [*(layer.incoming for layer in model.layers[1:]), model.head]


def _nonzero(layer: Layer) -> Layer:
    """Ones where there is a number: squares of the smallest would be 0."""
    return Layer(*((array != 0).astype(np.float32) for array in (layer.incoming, layer.recurrent, layer.bias)))


def _squares(layer: Layer, reader: Floats) -> Floats:
    hidden = layer.hidden
    gates = np.square(layer.recurrent).reshape(GATES, hidden, hidden).sum(axis=0)  # [made, read]
    incoming = np.square(layer.incoming).reshape(GATES, hidden, -1).sum(axis=(0, 2))
    squares: Floats = incoming + gates.sum(axis=1) + gates.sum(axis=0) - np.diagonal(gates)
    return squares + np.square(reader).sum(axis=0)
