"""VPTQ: neighbouring rows of a column are stored as one code of a vector, column by column, and what is left over moves
on to the columns behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from thrifty.arrays import Bytes, Floats, Integers
from thrifty.card import Card
from thrifty.formats.linear import PackedLinear, VectorLinear
from thrifty.kernels.reference.affine import Halves, require_finite, to_float16
from thrifty.registry import technique
from thrifty.weights.clusters import nearest, vector_centroids
from thrifty.weights.hessian import Doubles, hessian, inputs_of, inverse_factor
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import Activations, WeightTechnique

BLOCK = 128  # columns; what they got wrong reaches the columns behind them in one product
ITERATIONS, TOLERANCE = 100, 1e-3  # of k-means
Count = Literal[16, 256, 4096, 65536]


@technique(
    stage="weights",
    card=Card(
        title="VPTQ: Extreme Low-bit Vector Post-Training Quantization for Large Language Models",
        paper="arXiv 2409.17066",
        year=2024,
        mechanism="Vectors of neighbouring rows of one input column are looked up in a table found by k-means weighted "
        "with the second moments of the inputs, and a second table stores what the first leaves; columns go in the "
        "order of their moments, and those behind make up for the errors.",
        claim="LLaMA-2-7B, WikiText2 perplexity: 6.13 at 2.02 bits, 5.95 at 2.26; 5.12 in FP16",
        limits=(
            "vectors have 4 or 8 rows (the paper's also 6, 12 and 16), tables 16, 256, 4,096 or 65,536 entries",
            "a matrix of a small model pays for its tables: their bytes count in bits a weight",
            "codes stay in the columns' order, so that no permutation is stored; the paper stores one",
            "outlier columns have tables of their own, of the same sizes; the paper's have other sizes",
            "the other columns share one pair of tables; the paper may split them into groups",
            "columns are scaled by their range and errors weighted to match; the authors' by deviation, unmatched",
            "centroids are trained on at most 131,072 vectors of a matrix, until a step gains less than 0.1 %",
            "no layer is tuned afterwards, as the paper does for its best figures",
            "products are in fp32 and bound by look-ups: decoding takes longer than the bytes alone predict",
            "the calibration text has 4,096 tokens by default; the paper's has 6,144 × 8,192",
            "an expert that no token of the text reached is stored without weights, with a warning",
            "embedding, logits and routers stay as they are",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class Vptq(WeightTechnique):
    """v: rows of a vector. k, k_residual: entries of the table, and of that of what it leaves; 0: none. outliers: the
    share of columns, those of the largest inputs, that have tables of their own. damping: of the mean second moment of
    the inputs, what is added to each.
    """

    needs_calibration: ClassVar[bool] = True
    bytes_need_calibration: ClassVar[bool] = False

    v: Literal[4, 8] = 4
    k: Count = 256
    k_residual: Literal[0, 16, 256, 4096, 65536] = 0
    outliers: Annotated[float, Field(ge=0, le=0.1)] = 0.0
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01

    def by_rows(self) -> Blank:
        """Its codes and tables, all zero."""
        return Blank(like=self)

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        weight = linear.linear.dequantize()
        require_finite(weight, f"'{linear.name}'")
        moments = hessian(inputs_of(linear, calibration))
        columns = Columns.of(weight, moments, self.v, self.outliers)
        factor = inverse_factor(moments[columns.order][:, columns.order], self.damping, linear.name)
        main = columns.table(columns.normal(weight), self.k)
        codes, rest_codes, errors = sweep(weight, factor, columns, main, None)
        rest = None
        if self.k_residual:
            rest = columns.table(errors, self.k_residual)
            codes, rest_codes, _ = sweep(weight, factor, columns, main, rest)
        books = columns.books if len(main) > 1 else None
        parameters = columns.scales, columns.offsets, books, linear.linear.bias
        return VectorLinear.from_codes(len(weight), codes, rest_codes, main, rest, *parameters)


@dataclass(frozen=True, kw_only=True)
class Blank(WeightTechnique):
    """Stores zeros in VPTQ's format; it is no technique of its own. like: whose options it has."""

    name: ClassVar[str] = "vptq"
    like: Vptq

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        rows, inputs = linear.linear.out_features, linear.linear.in_features
        two = round(self.like.outliers * inputs) > 0
        codes, ones = np.zeros((-(-rows // self.like.v), inputs), np.int64), np.ones(inputs, np.float16)
        main = np.zeros((1 + two, self.like.k, self.like.v), np.float16)
        rest, books = np.zeros((1 + two, self.like.k_residual, self.like.v), np.float16), np.zeros(inputs, np.uint8)
        more = (codes, rest) if self.like.k_residual else (None, None)
        parameters = ones, np.zeros_like(ones), books if two else None, linear.linear.bias
        return VectorLinear.from_codes(rows, codes, more[0], main, more[1], *parameters)


@dataclass(frozen=True)
class Columns:
    """The input columns of a matrix: how each is scaled, weighted and ordered.

    scales, offsets: fp16 [in], a column is (w − offset) / scale, from 0 to 1 at first. mass: fp32 [in], what a squared
    error of such a number costs: H_jj·scale². order: int64 [in], by falling H_jj. books: uint8 [in], 1 for outliers.
    """

    v: int
    scales: Halves
    offsets: Halves
    mass: Floats
    order: Integers
    books: Bytes

    @classmethod
    def of(cls, weight: Floats, moments: Doubles, v: int, outliers: float) -> Columns:
        """As the weight [out, in] and H [in, in] have them. Raises KernelError for a range beyond float16."""
        diagonal = np.diagonal(moments)
        order = np.argsort(-diagonal, kind="stable")
        low = weight.min(axis=0)
        offsets = to_float16(low, "column offset")
        scales = to_float16(weight.max(axis=0) - low, "column range")
        scales = np.where(scales > 0, scales, np.float16(1))
        mass = (diagonal if diagonal.any() else np.ones_like(diagonal)) * np.square(scales.astype(np.float64))
        books = np.zeros(len(order), np.uint8)
        books[order[: round(outliers * len(order))]] = 1
        return cls(v, scales, offsets, mass.astype(np.float32), order, books)

    def normal(self, weight: Floats) -> Floats:
        """Vectors of scaled columns, fp32 [in, vectors, v]; rows behind the last repeat it."""
        columns = (weight - self.offsets.astype(np.float32)) / self.scales.astype(np.float32)
        padded: Floats = np.pad(columns, ((0, -len(columns) % self.v), (0, 0)), mode="edge")
        return np.ascontiguousarray(padded.T).reshape(weight.shape[1], -1, self.v)

    def table(self, vectors: Floats, count: int) -> Halves:
        """Centroids by k-means, a vector weighted by its column's mass (§3.2): fp16 [books, count, v].

        vectors: fp32 [in, vectors, v].
        """
        tables = []
        for book in range(int(self.books.max(initial=0)) + 1):
            own = self.books == book
            mass = np.repeat(self.mass[own], vectors.shape[1])
            flat = vectors[own].reshape(-1, self.v)
            found = vector_centroids(flat, mass, count, iterations=ITERATIONS, tolerance=TOLERANCE, seed=book)
            tables.append(to_float16(found, "centroid"))
        return np.stack(tables)


def sweep(
    weight: Floats, factor: Floats, columns: Columns, main: Halves, rest: Halves | None
) -> tuple[Integers, Integers | None, Floats]:
    """Codes int64 [vectors, in] of both tables, and what was left of each scaled column, fp32 [in, vectors, v]
    (algorithm 1).

    factor: U, UᵀU = H⁻¹, in the order of the sweep. Column j takes the nearest vectors q_j of the main table, and of
    what they leave the nearest of the rest; e = (w_j − q_j) / U_jj, and w_k −= e·U_jk for the columns k behind it.
    """
    rows, inputs = weight.shape
    padded: Floats = np.pad(weight, ((0, -rows % columns.v), (0, 0)), mode="edge")
    left = np.ascontiguousarray(padded.T[columns.order])  # [in, rows], updated
    tables, rest_tables = main.astype(np.float32), None if rest is None else rest.astype(np.float32)
    codes = np.empty((inputs, left.shape[1] // columns.v), np.int64)
    rest_codes = None if rest is None else np.empty_like(codes)
    over = np.empty((inputs, codes.shape[1], columns.v), np.float32)
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        errors = np.empty((stop - start, left.shape[1]), np.float32)
        for place in range(start, stop):
            column = int(columns.order[place])
            scale, offset = np.float32(columns.scales[column]), np.float32(columns.offsets[column])
            book, scaled = columns.books[column], ((left[place] - offset) / scale).reshape(-1, columns.v)
            codes[column] = nearest(scaled, tables[book])
            values = tables[book][codes[column]]
            if rest_tables is not None and rest_codes is not None:
                rest_codes[column] = nearest(scaled - values, rest_tables[book])
                values = values + rest_tables[book][rest_codes[column]]
            over[column] = scaled - values
            error = (left[place] - (values.reshape(-1) * scale + offset)) / factor[place, place]
            left[place + 1 : stop] -= factor[place, place + 1 : stop, None] * error
            errors[place - start] = error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return np.ascontiguousarray(codes.T), None if rest_codes is None else np.ascontiguousarray(rest_codes.T), over
