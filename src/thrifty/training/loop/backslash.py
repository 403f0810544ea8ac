"""BackSlash: training under a generalised Gaussian prior, so that weights cost few bits when they are entropy-coded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from thrifty.arrays import Floats
from thrifty.reference.arrays import array_of

STRENGTH = 2000.0  # λ of the released code
LEAST = 0.1  # of γ: below it the step would fall with every weight


class BackSlash:
    """Call it after every step of a training (arXiv 2504.16968; step as in the code of 2506.00486):

        w ← w − (λ·γ / n)·sign(w)·(|w| + 1)^(γ − 1)

    n: numbers of all trained weights. γ: their common shape, estimated anew every `every` steps by `shape_of` (of fp32
    weights, as `weights.generalised_gaussian.fitted` does). A step never takes a
    weight past 0.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        shape_of: Callable[[Floats], float],
        strength: float = STRENGTH,
        every: int = 20,
    ) -> None:
        self._parameters = [weight for weight in parameters.values() if weight.ndim > 1]
        self._count = sum(weight.numel() for weight in parameters.values())
        self._shape_of, self._strength, self._every = shape_of, strength, every
        self.shape = 2.0

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        """step: from 0 on."""
        if step % self._every == 0:
            flat = torch.cat([weight.reshape(-1) for weight in self._parameters])
            self.shape = max(LEAST, self._shape_of(array_of(flat)))
        rate = self._strength * self.shape / self._count
        for weight in self._parameters:
            pull = rate * (weight.abs() + 1) ** (self.shape - 1)
            weight.copy_(weight.sign() * (weight.abs() - pull).clamp_min(0))
