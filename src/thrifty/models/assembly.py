"""Filling a decoder that was built without memory, part by part, and knowing what is still missing."""

from __future__ import annotations

from torch import Tensor, nn

from thrifty.errors import CheckpointError
from thrifty.formats.linear import PackedLinear
from thrifty.models.config import ModelConfig
from thrifty.models.decoder import Decoder
from thrifty.models.norm import RMSNorm
from thrifty.models.slot import Slot


def parts(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    """Name and shape of all that an empty decoder needs: linears [out, in], their biases [out], norms
    [width].
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in decoder.named_modules():
        if isinstance(module, Slot):
            shapes[name] = (module.out_features, module.in_features)
            if module.has_bias:
                shapes[f"{name}.bias"] = (module.out_features,)
        elif isinstance(module, RMSNorm):
            shapes[name] = tuple(module.weight.shape)
    return shapes


class Assembly:
    """An empty decoder on its way to a full one. Parts are assigned, never copied.

    >>> assembly = Assembly(config)
    >>> for name, value in tensors:
    ...     assembly.put(name, value)
    >>> decoder = assembly.finish()
    """

    def __init__(self, config: ModelConfig) -> None:
        self.decoder = Decoder(config)
        self.expected = parts(self.decoder)
        self._modules = dict(self.decoder.named_modules())
        self._biases: dict[str, Tensor] = {}
        self._norms: dict[str, Tensor] = {}
        self._filled: set[str] = set()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the part `name` must have; raises CheckpointError where the decoder has no such
        part.
        """
        if name not in self.expected:
            raise CheckpointError(f"Tensor {name!r} has no place in this {self.decoder.config.family} model.")
        return self.expected[name]

    def put(self, name: str, value: PackedLinear | Tensor) -> None:
        """Assign a linear (a PackedLinear), a bias (fp32 [out]) or a norm's weight (fp32 [width]).

        Raises CheckpointError where the name is unknown or comes twice, or the shape is not the expected one.
        """
        expected = self.shape(name)
        found = list(value.shape) if isinstance(value, Tensor) else [value.out_features, value.in_features]
        if found != list(expected):
            raise CheckpointError(f"Tensor {name!r} has shape {found}; expected {list(expected)}.")
        if name in self._filled:
            raise CheckpointError(f"Tensor {name!r} comes twice.")
        self._filled.add(name)
        if isinstance(value, PackedLinear):
            self._put_linear(name, value)
        elif name.endswith(".bias"):
            self._biases[name.removesuffix(".bias")] = value
        else:
            self._norms[name] = value

    def _put_linear(self, name: str, linear: PackedLinear) -> None:
        path, _, leaf = name.rpartition(".")
        setattr(self._modules[path], leaf, linear)
        self._modules[name] = linear
        if linear.bias is not None:
            self._filled.add(f"{name}.bias")

    def finish(self) -> Decoder:
        """The full decoder. Raises CheckpointError naming the parts that never came."""
        missing = [name for name in self.expected if name not in self._filled]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            shown = ", ".join(f"{name!r} {list(self.expected[name])}" for name in missing[:3])
            raise CheckpointError(f"The checkpoint lacks {shown}{more}.")
        for name, bias in self._biases.items():
            self._modules[name].set_bias(bias)
        trains = any(parameter.requires_grad for parameter in self.decoder.parameters())
        for name, weight in self._norms.items():
            self._modules[name].weight = nn.Parameter(weight.float(), requires_grad=trains)
        return self.decoder
