"""How much the loss of a text depends on each weight: squared gradients, the diagonal of the Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thrifty.arrays import Floats, Integers
from thrifty.models.model import Model
from thrifty.reference.arrays import array_of, tensor_of
from thrifty.reference.attention import causal
from thrifty.reference.decoder import Decoder
from thrifty.reference.loading import build


def squared_gradients(
    model: Model, sequences: Integers, names: Sequence[str], say: Callable[[int], None] = lambda done: None
) -> dict[str, Floats]:
    """F = Σ g², fp32 [out, in] of each named linear; g is the gradient of one sequence's mean next-token loss
    (SqueezeLLM, 2306.07629, §4.1).

    sequences: int64 [sequences, tokens]. The gradient is that of the dense weight, in whatever format the linear is
    stored, formed and squared linear by linear: held at a time are F and one linear's gradient, beside the activations
    of one sequence. say: called with the sequences that are done, after each.
    """
    decoder = build(model).decoder.requires_grad_(False)
    sums = {name: torch.zeros(model.linears[name].out_features, model.linears[name].in_features) for name in names}
    handles = [decoder.get_submodule(name).register_forward_hook(partial(_watch, sums[name])) for name in names]
    try:
        for done, sequence in enumerate(tensor_of(np.ascontiguousarray(sequences)), 1):
            _loss(decoder, sequence).backward()
            say(done)
    finally:
        for handle in handles:
            handle.remove()
    return {name: array_of(total) for name, total in sums.items()}


def _loss(decoder: Decoder, tokens: Tensor) -> Tensor:
    """The mean next-token loss of one sequence, int64 [tokens], with gradients from the first hidden state on."""
    positions, attend = torch.arange(len(tokens)), causal(decoder.config)
    hidden = decoder.embed(tokens).detach().requires_grad_()
    for layer in range(len(decoder.layers)):
        hidden = decoder.layer(layer, hidden, positions, attend)
    return cross_entropy(decoder.logits(hidden)[:-1], tokens[1:])


def _watch(total: Tensor, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Once the output's gradient is known: total += (gradientᵀ · input)². A linear runs once a sequence."""
    x = inputs[0].detach().reshape(-1, total.shape[1]).float()

    def add(gradient: Tensor) -> None:
        product = gradient.reshape(-1, total.shape[0]).float().T @ x
        total.addcmul_(product, product)

    if output.requires_grad:
        output.register_hook(add)
