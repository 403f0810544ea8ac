"""Root-mean-square and layer normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) · (weight + offset), computed in fp32 (arXiv 1910.07467, eq. 4).

    x: [..., width], any float dtype; the result has x's dtype. `offset` is 1.0 where a checkpoint stores
    the weight minus one. The weight lies on the meta device until `loading.build` assigns it.
    """

    def __init__(self, width: int, epsilon: float, offset: float = 0.0) -> None:
        super().__init__()
        self.epsilon, self.offset = epsilon, offset
        self.weight = nn.Parameter(torch.empty(width, dtype=torch.float32, device="meta"), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        weight = self.weight + self.offset if self.offset else self.weight
        return (scaled * weight).to(x.dtype)


class LayerNorm(nn.Module):
    """(x − mean) / deviation · (weight + offset) + bias, computed in fp32 (arXiv 1607.06450, eq. 4).

    Shapes, dtypes and `offset` as in RMSNorm.
    """

    def __init__(self, width: int, epsilon: float, offset: float = 0.0) -> None:
        super().__init__()
        self.width, self.epsilon, self.offset = width, epsilon, offset
        empty = torch.empty(width, dtype=torch.float32, device="meta")
        self.weight = nn.Parameter(empty, requires_grad=False)
        self.bias = nn.Parameter(empty, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + self.offset if self.offset else self.weight
        return F.layer_norm(x.float(), (self.width,), weight, self.bias, self.epsilon).to(x.dtype)
