"""The first weights: random, with a beginning of the circuit that looks keys up.

A model that looks up "the number of Lisbon" needs heads that tell what stood one, two, three tokens before, and heads
above them that compare it. Neither pays without the other, so from random weights training waits long for both. Here
the first layer's heads begin by looking back, and the second layer's by comparing what stood k tokens before a token
with what stood k + 1 before another, whose word they pass on. From the first step on they are weights like any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.models.model import random_model
from thrifty.models.rope import inverse_frequencies
from thrifty.reference.arrays import tensor_of
from thrifty.reference.decoder import Decoder
from thrifty.reference.loading import build
from training.recall.network import Shape

SPREAD = 0.04  # of embeddings
CONSTANT = 0.1  # the first channel of all embeddings, from which queries and keys of places are made
LOOKING = 6  # heads that look back: 1, 2, … tokens


@dataclass(frozen=True)
class Wiring:
    """sharpness: logits by which a head prefers its place to the next one. comparing: size of the second layer's
    queries and keys. passing: of what it passes on. 0 each: nothing is wired.
    """

    sharpness: float = 5.0
    comparing: float = 12.0
    passing: float = 0.2


def first_weights(shape: Shape, seed: int, wiring: Wiring | None) -> Decoder:
    """A decoder to be trained. Raises ValueError where a shape is too small to be wired."""
    if wiring is not None and (shape.heads < LOOKING or shape.layers < 2):
        raise ValueError(
            f"{shape.heads} heads in {shape.layers} layers are too few to be wired: take {LOOKING} heads and 2 layers "
            "or more, or no wiring"
        )
    decoder = build(random_model(shape.config(), seed, scale=0.02)).decoder
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith((".output.weight", ".mlp.down.weight")):
                parameter.div_(math.sqrt(2 * shape.layers))
        shape.begin(decoder)
        if wiring is not None:
            _wire(decoder, shape, wiring, torch.Generator().manual_seed(seed + 1))
    return decoder


def _wire(decoder: Decoder, shape: Shape, wiring: Wiring, generator: torch.Generator) -> None:
    embedding = decoder.get_parameter("embedding.weight")
    embedding.mul_(SPREAD / 0.02)
    embedding[:, 0] = CONSTANT
    scale = math.sqrt(SPREAD**2 + CONSTANT**2 / shape.hidden)  # what the norm divides by
    _look_back(decoder, shape, wiring.sharpness, CONSTANT / scale)
    places = _pass_back(decoder, shape, generator, SPREAD / scale)
    _compare(decoder, shape, wiring, places, generator)


def _look_back(decoder: Decoder, shape: Shape, sharpness: float, constant: float) -> None:
    """Queries that are the keys turned back by 1, 2, … tokens."""
    frequencies = tensor_of(inverse_frequencies(decoder.config.layers[0].rope, 1)[0])
    pairs = (frequencies > 0.01).float()
    size = math.sqrt(sharpness * 8 / (pairs * (1 - frequencies.cos())).sum()) / constant
    queries, keys, _, _ = _heads(decoder, shape, 0)
    for head in range(LOOKING):
        angle = -(head + 1) * frequencies
        queries[head, :, 0] = torch.cat((angle.cos() * pairs, angle.sin() * pairs)) * size
        keys[head * shape.kv_heads // shape.heads, :, 0] = torch.cat((pairs, 0 * pairs)) * size


def _pass_back(decoder: Decoder, shape: Shape, generator: torch.Generator, spread: float) -> list[Tensor]:
    """Every looking head passes on a projection of the word it sees, about as large as the word, to a place of its own;
    the places [hidden, 64].
    """
    word, size = _orthogonal(64, shape.hidden, generator), 0.35
    word[:, 0] = 0
    _, _, values, outputs = _heads(decoder, shape, 0)
    places = []
    for head in range(LOOKING):
        places.append(_orthogonal(shape.hidden, 64, generator))
        values[head * shape.kv_heads // shape.heads] = word * size
        outputs[:, head] = places[-1] * (0.6 * SPREAD * math.sqrt(shape.hidden / 64) / (spread * size))
    return places


def _compare(decoder: Decoder, shape: Shape, wiring: Wiring, places: list[Tensor], generator: torch.Generator) -> None:
    """KV head k of the second layer: words k + 1 back at the query, k + 2 back at the key, in channels that rotation
    hardly turns.
    """
    slow = (tensor_of(inverse_frequencies(decoder.config.layers[1].rope, 1)[0]) < 1.5e-4).nonzero().flatten()
    channels = torch.cat((slow, slow + 32))
    queries, keys, values, outputs = _heads(decoder, shape, 1)
    group = shape.heads // shape.kv_heads
    words = _orthogonal(shape.kv_heads * 64, shape.kv_heads * 64, generator)[:, : shape.hidden]
    for head in range(min(shape.kv_heads, LOOKING - 1)):
        mixed = _orthogonal(len(channels), 64, generator) * wiring.comparing
        keys[head][channels] += mixed @ places[head + 1].T
        values[head] = words[head * 64 : (head + 1) * 64] * 0.5
        for query in range(head * group, (head + 1) * group):
            queries[query][channels] += mixed @ places[head].T
            outputs[:, query] = words[head * 64 : (head + 1) * 64].T * wiring.passing


def _heads(decoder: Decoder, shape: Shape, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of a layer's weights by head: queries, keys and values [heads, 64, hidden], outputs [hidden, heads, 64]."""
    query, key, value, output = (
        decoder.get_parameter(f"layers.{layer}.attention.{name}.weight") for name in ("query", "key", "value", "output")
    )
    heads, kv_heads = (shape.heads, 64), (shape.kv_heads, 64)
    return (
        query.unflatten(0, heads),
        key.unflatten(0, kv_heads),
        value.unflatten(0, kv_heads),
        output.unflatten(1, heads),
    )


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """[rows, columns] whose rows, or columns where there are fewer, are orthonormal."""
    found, _ = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=generator))
    return found.T.contiguous() if rows < columns else found
