"""A linear weight as a chain of small tensors: a matrix product operator, never put together to multiply."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.arrays import BFLOAT16, Array, Floats, Integers
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.dense import DenseLinear
from thrifty.formats.group import GroupLinear
from thrifty.formats.packed import NativeArrays, PackedLinear, check_rows, field

SITES = (2, 3, 4)
Doubles = npt.NDArray[np.float64]


class TensorTrainLinear(PackedLinear):
    """W[o_1 … o_n, i_1 … i_n] = Σ over bonds of A_1[o_1, i_1, c_1]·A_2[c_1, o_2, i_2, c_2] · … · A_n[c_n−1, o_n, i_n].

    Rows and columns of W are numbered with the last site's index fastest. Tensor k is a linear [o_k·χ_k, i_k·χ_k−1]
    in a format of its own: row (o_k, c_k), column (i_k, c_k−1), the bonds fastest; χ_0 = χ_n = 1.

    A product contracts x with the first tensor, what that gives with the second, and so on: site k is a matmul with
    (o_1 … o_k−1)·(i_k+1 … i_n) rows for each row of x, whose results are rounded as the next site reads activations
    (bf16, or int8 per 32). Natively the last site gives o_n rows of y side by side, so o_n is a multiple of 16, or all
    rows. A row's bits do not depend on its batch.
    """

    kind = "tensor_train"

    def __init__(
        self, sites: Sequence[PackedLinear], rows: Sequence[int], columns: Sequence[int], bias: Array | None = None
    ) -> None:
        """Of tensors without a bias, used as they are; rows: o_k, columns: i_k. Raises KernelError where they do not
        fit each other.
        """
        super().__init__(math.prod(rows), math.prod(columns), bias)
        if len(sites) not in SITES or not len(sites) == len(rows) == len(columns):
            raise KernelError(f"a train of tensors has 2 to 4 sites, each with rows and columns; found {len(sites)}")
        self.sites, self.row_sizes, self.column_sizes = tuple(sites), tuple(rows), tuple(columns)
        self.bonds = _bonds(self.sites, self.row_sizes, self.column_sizes)
        if rows[-1] != self.out_features and rows[-1] % 16:
            raise KernelError(f"the last site gives {rows[-1]} rows; it must give all, or a multiple of 16")

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[TensorTrainLinear]:
        """Two sites in bf16 and of 8 bits, and three in bf16."""
        random = np.random.default_rng(seed)
        first = 2 if out_features % 32 == 0 else 1

        def site(outs: int, ins: int) -> Floats:
            return random.standard_normal((outs, ins), np.float32) / np.float32(math.sqrt(ins))

        pair = [site(first * 24, in_features // 4), site(out_features // first, 4 * 24)]
        shape = (first, out_features // first), (in_features // 4, 4)
        yield cls([DenseLinear.from_weight(own, BFLOAT16, packed=True) for own in pair], *shape)
        yield cls([GroupLinear.quantize(own, 8, 32) for own in pair], *shape)
        three = [site(first * 16, in_features // 8), site(20, 4 * 16), site(out_features // first, 2 * 20)]
        packed = [DenseLinear.from_weight(own, BFLOAT16, packed=True) for own in three]
        yield cls(packed, (first, 1, out_features // first), (in_features // 8, 4, 2))

    @property
    def has_kernel(self) -> bool:
        return all(site.has_kernel for site in self.sites)

    @property
    def parameters(self) -> int:
        """Numbers in all tensors: Σ o_k·i_k·χ_k−1·χ_k."""
        return sum(site.out_features * site.in_features for site in self.sites)

    def native(self) -> NativeArrays | None:
        """Plain rows in, and the tensors as native Linears."""
        from thrifty.kernels import dispatch

        if any(site.native() is None for site in self.sites):
            return None
        packed = [dispatch.packed(site) for site in self.sites]
        sites = tuple(zip(packed, self.row_sizes, self.column_sizes, strict=True))
        return "f32", {"codes": None, "sites": sites}

    @property
    def label(self) -> str:
        """Such as "mpo-x96-bf16": the bonds, and the format of the tensors."""
        return f"mpo-x{'x'.join(map(str, self.bonds[1:-1]))}-{self.sites[0].label}"

    @property
    def nbytes(self) -> int:
        own = 0 if self.bias is None else self.bias.nbytes
        return own + sum(site.nbytes for site in self.sites)

    def tile(self, start: int, stop: int) -> Floats:
        return self._put_together(np.arange(start, stop))

    def rows(self, indices: Integers) -> Floats:
        check_rows(indices, self.out_features)
        return self._put_together(indices)

    def _put_together(self, indices: Integers) -> Floats:
        """Rows of W; in fp64, so that their bits do not depend on their number."""
        left = np.ones((1, 1, 1))  # [rows of the sites so far, columns, bond]
        for site in range(len(self.sites) - 1):
            tensor = self._tensor(site)
            joined = np.einsum("pac,odic->poaid", left, tensor, optimize=True)
            left = joined.reshape(left.shape[0] * tensor.shape[0], -1, tensor.shape[1])
        last = self._tensor(len(self.sites) - 1)[:, 0]  # [o_n, i_n, bond]
        weight = np.empty((len(indices), self.in_features), np.float32)
        prefixes, own = np.divmod(indices, self.row_sizes[-1])
        for prefix in np.unique(prefixes):
            chosen = np.flatnonzero(prefixes == prefix)
            weight[chosen] = np.einsum("ac,nic->nai", left[prefix], last[own[chosen]]).reshape(len(chosen), -1)
        return weight

    def _tensor(self, site: int) -> Doubles:
        """fp64 [o_k, χ_k, i_k, χ_k−1]."""
        shape = (self.row_sizes[site], self.bonds[site + 1], self.column_sizes[site], self.bonds[site])
        return self.sites[site].dequantize().astype(np.float64).reshape(shape)

    def oracle(self, x: Floats) -> Floats:
        """The native kernels' numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias."""
        count, done, waiting = len(x), 1, self.in_features
        state = x.reshape(count, 1, 1, -1)  # [m, rows so far, bond, columns to come]
        for site, linear in enumerate(self.sites):
            rows, columns, bond = self.row_sizes[site], self.column_sizes[site], self.bonds[site]
            waiting //= columns
            read = state.reshape(count, done, bond, columns, waiting).transpose(0, 1, 4, 3, 2)
            made = linear.oracle(np.ascontiguousarray(read.reshape(-1, columns * bond)))  # type: ignore[attr-defined]
            made = made.reshape(count, done, waiting, rows, self.bonds[site + 1]).transpose(0, 1, 3, 4, 2)
            done *= rows
            state = np.ascontiguousarray(made).reshape(count, done, self.bonds[site + 1], waiting)
        result: Floats = state.reshape(count, self.out_features)
        return result

    def meta(self) -> dict[str, Any]:
        shape = {"rows": list(self.row_sizes), "columns": list(self.column_sizes)}
        return {**super().meta(), **shape, "sites": [site.meta() for site in self.sites]}

    def _arrays(self) -> dict[str, Array | None]:
        return {
            f"sites.{place}.{name}": array
            for place, site in enumerate(self.sites)
            for name, array in site.state().items()
        }

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> TensorTrainLinear:
        rows, columns, stored = _sizes(meta, "rows"), _sizes(meta, "columns"), meta.get("sites")
        if not isinstance(stored, list) or len(stored) not in SITES:
            raise CheckpointError("linear field 'sites' must be a list of 2 to 4 tables that describe linears")
        sites = [_site(own, tensors, place) for place, own in enumerate(stored)]
        linear = cls(sites, rows, columns, tensors.get("bias"))
        if (field(meta, "out_features"), field(meta, "in_features")) != (linear.out_features, linear.in_features):
            raise KernelError(f"its sites are those of a linear [{linear.out_features}, {linear.in_features}]")
        return linear


def _bonds(sites: Sequence[PackedLinear], rows: Sequence[int], columns: Sequence[int]) -> tuple[int, ...]:
    """χ_0 … χ_n. Raises KernelError where a site does not fit the one before it."""
    bonds = [1]
    for place, (site, outs, ins) in enumerate(zip(sites, rows, columns, strict=True)):
        if site.bias is not None or isinstance(site, TensorTrainLinear) or site.kind == "low_rank":
            raise KernelError("a site of a train of tensors has neither a bias, nor a low rank, nor sites of its own")
        if outs < 1 or site.out_features % outs or site.in_features != ins * bonds[-1]:
            raise KernelError(
                f"site {place + 1} [{site.out_features}, {site.in_features}] does not fit {outs} rows, and {ins} "
                f"columns times a bond of {bonds[-1]}"
            )
        bonds.append(site.out_features // outs)
    if bonds[-1] != 1:
        raise KernelError(f"the last site of a train of tensors has a bond of 1 behind it, not {bonds[-1]}")
    return tuple(bonds)


def _sizes(meta: Mapping[str, Any], name: str) -> list[int]:
    """Positive integers from untrusted metadata."""
    given = meta.get(name)
    if not isinstance(given, list) or len(given) not in SITES:
        raise CheckpointError(f"linear field '{name}' must be a list of 2 to 4 positive integers")
    return [field({name: size}, name) for size in given]


def _site(meta: Any, tensors: Mapping[str, Array], place: int) -> PackedLinear:
    """One tensor from untrusted metadata, which is no train itself."""
    if not isinstance(meta, Mapping) or meta.get("kind") in (TensorTrainLinear.kind, "low_rank"):
        raise CheckpointError(f"linear field 'sites' has no table that describes a plain linear at place {place + 1}")
    prefix = f"sites.{place}."
    own = {key.removeprefix(prefix): array for key, array in tensors.items() if key.startswith(prefix)}
    return PackedLinear.from_state(meta, own)
