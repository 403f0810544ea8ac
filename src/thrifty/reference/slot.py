"""The place of a linear layer in a decoder that is not loaded yet."""

from __future__ import annotations

from torch import Tensor, nn

from thrifty.errors import CheckpointError


class Slot(nn.Module):
    """Knows the shape of the linear that belongs here and whether it has a bias; holds no memory."""

    def __init__(self, out_features: int, in_features: int, bias: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features, self.has_bias = out_features, in_features, bias

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, bias={self.has_bias}"

    def forward(self, x: Tensor) -> Tensor:
        shape = [self.out_features, self.in_features]
        raise CheckpointError(f"A linear of shape {shape} was used before it was loaded.")
