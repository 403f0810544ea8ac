"""A linear weight with a product of low rank added to it: W = base + U·V, each stored in a format of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from thrifty.arrays import BFLOAT16, Array, Floats, Integers
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.dense import DenseLinear
from thrifty.formats.group import GroupLinear
from thrifty.formats.packed import NativeArrays, PackedLinear, field

PARTS = ("base", "down", "up")


class LowRankLinear(PackedLinear):
    """y = base·x + up·(down·x) + bias, with base [out, in], down [rank, in] and up [out, rank].

    The product is never multiplied out: `down·x` is rounded as `up` reads activations (int8 per 32 of the rank, or
    bf16), then added to the base's result. A row's bits do not depend on its batch.
    """

    kind = "low_rank"

    def __init__(self, base: PackedLinear, down: PackedLinear, up: PackedLinear, bias: Array | None = None) -> None:
        """Of three layers without a bias, used as they are. Raises KernelError where they do not fit each other."""
        super().__init__(base.out_features, base.in_features, bias)
        wanted = (down.in_features, up.out_features, up.in_features)
        if wanted != (base.in_features, base.out_features, down.out_features):
            raise KernelError(
                f"up {_shape(up)} times down {_shape(down)} does not fit a base {_shape(base)}: it takes up "
                f"[{base.out_features}, rank] and down [rank, {base.in_features}]"
            )
        for name, part in zip(PARTS, (base, down, up), strict=True):
            if part.bias is not None or isinstance(part, LowRankLinear):
                raise KernelError(f"the {name} of a linear of low rank has neither a bias nor a low rank of its own")
        self.base, self.down, self.up = base, down, up

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[LowRankLinear]:
        """3 bits with a product of 3 bits, and 4 bits with one in bf16."""
        random = np.random.default_rng(seed)
        weight = random.standard_normal((out_features, in_features), np.float32)
        down, up = (random.standard_normal(shape, np.float32) for shape in ((32, in_features), (out_features, 32)))
        up *= np.float32(0.03)
        codes = [GroupLinear.quantize(part, 3, 64) for part in (weight, down, up)]
        yield cls(codes[0], codes[1], codes[2])
        packed = [DenseLinear.from_weight(part, BFLOAT16, packed=True) for part in (down, up)]
        yield cls(GroupLinear.quantize(weight, 4, 32), packed[0], packed[1])

    @property
    def rank(self) -> int:
        """Columns of U."""
        return self.up.in_features

    @property
    def has_kernel(self) -> bool:
        return all(part.has_kernel for part in self._parts.values())

    def native(self) -> NativeArrays | None:
        """The base's layout, and `down` and `up` as native Linears."""
        from thrifty.kernels import dispatch

        stored = self.base.native()
        if stored is None or self.down.native() is None or self.up.native() is None:
            return None
        layout, arrays = stored
        return layout, {**arrays, "down": dispatch.packed(self.down), "up": dispatch.packed(self.up)}

    @property
    def label(self) -> str:
        """Such as "int3-g64+r16-int8-g32"; the last is the format of U, and of V."""
        return f"{self.base.label}+r{self.rank}-{self.up.label}"

    @property
    def nbytes(self) -> int:
        own = 0 if self.bias is None else self.bias.nbytes
        return own + sum(part.nbytes for part in self._parts.values())

    def tile(self, start: int, stop: int) -> Floats:
        return self._sum(self.base.tile(start, stop), self.up.tile(start, stop))

    def rows(self, indices: Integers) -> Floats:
        return self._sum(self.base.rows(indices), self.up.rows(indices))

    def _sum(self, base: Floats, up: Floats) -> Floats:
        """Rows of the base and of U as rows of the whole; in fp64, so that their bits do not depend on their number."""
        product = up.astype(np.float64) @ self.down.dequantize().astype(np.float64)
        product += base
        return product.astype(np.float32)

    def oracle(self, x: Floats) -> Floats:
        """The native kernels' numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias."""
        base, down, up = (part.oracle for part in self._parts.values())  # type: ignore[attr-defined]
        result: Floats = base(x) + up(np.ascontiguousarray(down(x)))
        return result

    def meta(self) -> dict[str, Any]:
        return {**super().meta(), **{name: part.meta() for name, part in self._parts.items()}}

    def _arrays(self) -> dict[str, Array | None]:
        return {
            f"{name}.{array}": values for name, part in self._parts.items() for array, values in part.state().items()
        }

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> LowRankLinear:
        base, down, up = (_part(meta, tensors, name) for name in PARTS)
        linear = cls(base, down, up, tensors.get("bias"))
        if (field(meta, "out_features"), field(meta, "in_features")) != (linear.out_features, linear.in_features):
            raise KernelError(f"its base is {_shape(linear.base)}")
        return linear

    @property
    def _parts(self) -> dict[str, PackedLinear]:
        return {"base": self.base, "down": self.down, "up": self.up}


def _part(meta: Mapping[str, Any], tensors: Mapping[str, Array], name: str) -> PackedLinear:
    """One of the three from untrusted metadata, which is no linear of low rank itself."""
    own = meta.get(name)
    if not isinstance(own, Mapping) or own.get("kind") == LowRankLinear.kind:
        raise CheckpointError(f"linear field '{name}' must be a table that describes a linear which is not of low rank")
    prefix = f"{name}."
    arrays = {key.removeprefix(prefix): array for key, array in tensors.items() if key.startswith(prefix)}
    return PackedLinear.from_state(own, arrays)


def _shape(linear: PackedLinear) -> str:
    return f"[{linear.out_features}, {linear.in_features}]"
