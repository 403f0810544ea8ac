"""Gathering the parts of a decoder as they come, and knowing what is still missing."""

from __future__ import annotations

from thrifty.arrays import Floats
from thrifty.errors import CheckpointError
from thrifty.formats.linear import PackedLinear
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.parts import parts


class Assembly:
    """The linears and norms of a decoder on their way to a full set. Parts are kept, never copied.

    >>> assembly = Assembly(config)
    >>> for name, value in tensors:
    ...     assembly.put(name, value)
    >>> linears, norms = assembly.finish()
    """

    def __init__(self, config: ModelConfig) -> None:
        self.family = config.family
        self.expected = parts(config)
        self._linears: dict[str, PackedLinear] = {}
        self._vectors: dict[str, Floats] = {}  # biases and norms
        self._filled: set[str] = set()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the part `name` must have; raises CheckpointError where the decoder has no such
        part.
        """
        if name not in self.expected:
            raise CheckpointError(f"Tensor {name!r} has no place in this {self.family} model.")
        return self.expected[name]

    def put(self, name: str, value: PackedLinear | Floats) -> None:
        """Keep a linear (a PackedLinear), a bias (fp32 [out]) or a norm's weight or bias (fp32 [width]).

        Raises CheckpointError where the name is unknown or comes twice, or the shape is not the expected one.
        """
        expected, shape = self.shape(name), shape_of(value)
        if shape != expected:
            raise CheckpointError(f"Tensor {name!r} has shape {list(shape)}; expected {list(expected)}.")
        if name in self._filled:
            raise CheckpointError(f"Tensor {name!r} comes twice.")
        self._filled.add(name)
        if not isinstance(value, PackedLinear):
            self._vectors[name] = value
            return
        self._linears[name] = value
        if value.bias is not None:
            self._filled.add(f"{name}.bias")

    def finish(self) -> tuple[dict[str, PackedLinear], dict[str, Floats]]:
        """All linears, with their biases, and all norms with theirs, each in the decoder's order.

        Raises CheckpointError naming the parts that never came.
        """
        missing = [name for name in self.expected if name not in self._filled]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            shown = ", ".join(f"{name!r} {list(self.expected[name])}" for name in missing[:3])
            raise CheckpointError(f"The checkpoint lacks {shown}{more}.")
        linears: dict[str, PackedLinear] = {}
        norms: dict[str, Floats] = {}
        for name in self.expected:
            if name in self._linears:
                linears[name] = self._linears[name]
            elif not name.endswith(".bias") or name.removesuffix(".bias") in norms:
                norms[name] = self._vectors[name]
            elif name in self._vectors:
                linears[name.removesuffix(".bias")].set_bias(self._vectors[name])
        return linears, norms


def shape_of(value: PackedLinear | Floats) -> tuple[int, ...]:
    """[out, in] of a linear, or an array's own shape."""
    return (value.out_features, value.in_features) if isinstance(value, PackedLinear) else value.shape
