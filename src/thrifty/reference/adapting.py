"""Adapters in the reference decoder: each linear's output plus its low-rank addition, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from thrifty.models.adapters import Adapter
from thrifty.reference.arrays import tensor_of
from thrifty.reference.decoder import Decoder


@contextmanager
def adapted(decoder: Decoder, adapter: Adapter | None, layer: int) -> Iterator[None]:
    """Inside, the linears of a layer compute y + scale · up (down x) (arXiv 2106.09685, §4.1); None changes nothing."""
    prefix, handles = f"layers.{layer}.", []
    for name, (down, up) in {} if adapter is None else adapter.weights.items():
        if adapter is not None and name.startswith(prefix):
            hook = _addition(tensor_of(down), tensor_of(up), adapter.scale_of(name))
            handles.append(decoder.get_submodule(name).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _addition(down: Tensor, up: Tensor, scale: float) -> Any:
    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        low = inputs[0].float() @ down.T
        return output + (scale * (low @ up.T)).to(output.dtype)

    return add
