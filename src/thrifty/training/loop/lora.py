"""Low-rank additions to frozen linears (LoRA, arXiv 2106.09685), trained and then merged."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thrifty.arrays import Floats
from thrifty.reference.arrays import array_of
from thrifty.reference.decoder import Decoder
from thrifty.reference.linear import Linear


@dataclass(frozen=True)
class LoraOptions:
    """rank r and alpha α of the addition (α / r)·B·A; dropout of what A reads while training."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05


class LoraLinear(nn.Module):
    """y = W·x + (α / r)·B·A·x with W frozen (§4.1, eq. 3). A: fp32 [r, in], random; B: fp32 [out, r], zeros first."""

    def __init__(self, base: Linear, options: LoraOptions, seed: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale, self.dropout = options.alpha / options.rank, options.dropout
        bound = 1 / math.sqrt(base.in_features)  # of torch's linears, which the authors' code begins with
        random = torch.Generator().manual_seed(seed)
        uniform = torch.rand(options.rank, base.in_features, generator=random)
        self.down = nn.Parameter((2 * uniform - 1) * bound)
        self.up = nn.Parameter(torch.zeros(base.out_features, options.rank))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out] of x's dtype."""
        dropped = F.dropout(x.float(), self.dropout, self.training)
        y: Tensor = self.base(x)
        return y + (self.scale * (dropped @ self.down.T @ self.up.T)).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> Floats:
        """W + (α / r)·B·A: fp32 [out, in]."""
        weight: Floats = self.base.stored.dequantize() + array_of(self.scale * (self.up @ self.down))
        return weight

    @torch.no_grad()
    def factors(self) -> tuple[Floats, Floats]:
        """(A fp32 [r, in], (α / r)·B fp32 [out, r]): their product is what was added."""
        return array_of(self.down.detach()), array_of(self.scale * self.up)


def attach(decoder: Decoder, names: Iterable[str], options: LoraOptions, seed: int = 0) -> dict[str, LoraLinear]:
    """Put a trainable addition around linears of a decoder, whose other parameters are frozen; by their names."""
    decoder.requires_grad_(False)
    added: dict[str, LoraLinear] = {}
    for place, name in enumerate(names):
        base = decoder.get_submodule(name)
        assert isinstance(base, Linear), f"{name} is a linear of the decoder"
        added[name] = LoraLinear(base, options, seed * 1_000_003 + place)
        path, _, leaf = name.rpartition(".")
        setattr(decoder.get_submodule(path), leaf, added[name])
    return added


def parameters_of(added: dict[str, LoraLinear]) -> dict[str, nn.Parameter]:
    """What trains, by name."""
    return {f"{name}.{part}": getattr(linear, part) for name, linear in added.items() for part in ("down", "up")}
