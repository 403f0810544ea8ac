"""SqueezeLLM: a table of values for each row, dense where the loss is sensitive, and the few outliers kept apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from thrifty.arrays import Flags, Floats
from thrifty.card import Card
from thrifty.formats.linear import PackedLinear, RowTableLinear, SparseLinear
from thrifty.kernels.reference.affine import require_finite
from thrifty.registry import technique
from thrifty.weights.clusters import nearest_in_row, row_centroids
from thrifty.weights.sensitive_technique import SensitiveTechnique
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import Activations

ITERATIONS = 50  # of k-means, as in the authors' code
ROWS = 256  # whose tables are found at once
Share = Annotated[float, Field(ge=0, le=0.1)]


@technique(
    stage="weights",
    card=Card(
        title="SqueezeLLM: Dense-and-Sparse Quantization",
        paper="arXiv 2306.07629",
        year=2023,
        mechanism="Each row has a table of 8 or 16 values, found by k-means in which a weight counts by the squared "
        "gradient of the loss; outliers and the most sensitive weights are kept apart in 16 bits.",
        claim="LLaMA-7B at 3 bits, C4 perplexity: 7.56 with 0.45 % of the weights sparse, 7.75 dense, against 9.55 of "
        "GPTQ and 7.08 in FP16",
        limits=(
            "a table's values are whole numbers −127 to 127 with one float16 scale a row; the paper's are float16",
            "outliers are the largest weights by share; the paper tunes a multiple of the quartiles' range to a share",
            "seeds of k-means++ are drawn once for each, without the greedy trials of the authors' library",
            "the calibration text has 4,096 tokens by default; the paper's has 100 sequences of 2,048",
            "gradients are those of a sequence of 256 tokens at a time: shorter sequences square more noise",
            "compressing runs the model forward and backward: it needs torch and 4 bytes a weight, in passes of 1 GB",
            "an expert that no token of the text reached has no gradients: its tables are found without weights",
            "single weights cost a prompt more than a decode step: products of many rows take up to twice as long",
            "embedding, logits and routers stay as they are",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class SqueezeLLM(SensitiveTechnique):
    """bits: of a code. outliers, sensitive: the shares of a matrix's weights that are kept in 16 bits, by magnitude and
    by sensitivity.
    """

    bytes_need_calibration: ClassVar[bool] = False

    bits: Literal[3, 4] = 3
    outliers: Share = 0.0045
    sensitive: Share = 0.0005

    def by_rows(self) -> SqueezeLLM:
        """The codes and tables."""
        return replace(self, outliers=0.0, sensitive=0.0)

    def beyond_rows(self, rows: int, columns: int) -> tuple[int, str]:
        """The single weights: as many as the shares say, whatever their values."""
        count = round(self.sensitive * rows * columns) + round(self.outliers * rows * columns)
        return (SparseLinear.bytes_of(rows, count), "+sparse") if count else (0, "")

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        assert calibration is not None and calibration.sensitivity is not None, "a SensitiveTechnique has it"
        weight, fisher = linear.linear.dequantize(), calibration.sensitivity
        require_finite(weight, f"'{linear.name}'")
        chosen = sparse_part(weight, fisher, self.sensitive, self.outliers)
        dense = quantised(np.where(chosen, 0, weight), np.where(chosen, 0, fisher), chosen, self.bits)
        if linear.linear.bias is not None:
            dense.set_bias(linear.linear.bias)
        return SparseLinear.over(dense, weight, chosen) if chosen.any() else dense


def sparse_part(weight: Floats, fisher: Floats, sensitive: float, outliers: float) -> Flags:
    """Which weights [out, in] leave the dense matrix (§4.2): first the most sensitive, of the rest the largest."""
    chosen = np.zeros(weight.size, np.bool_)
    for measure, share in ((fisher.reshape(-1), sensitive), (np.abs(weight).reshape(-1), outliers)):
        count = round(share * weight.size)
        if count:
            rest = np.where(chosen, -1, measure)
            chosen[np.argpartition(-rest, count - 1)[:count]] = True
    return chosen.reshape(weight.shape)


def quantised(weight: Floats, fisher: Floats, outside: Flags, bits: int) -> RowTableLinear:
    """Q(w)* = argmin Σᵢ Fᵢᵢ·(w_i − Q(w_i))² of each row (§4.1), by k-means with F as weights.

    outside: weights that are kept apart. They are 0 in weight and fisher: none draws a value, and their code is that of
    the value nearest to 0. A row whose F is 0 all over is clustered without weights.
    """
    rows = len(weight)
    tables, scales = np.empty((rows, 1 << bits), np.int8), np.empty(rows, np.float16)
    codes = np.empty(weight.shape, np.uint8)
    for start in range(0, rows, ROWS):
        part = slice(start, start + ROWS)
        mass = fisher[part]
        for fallback in (~outside[part], np.ones_like(mass)):  # the second for a row that is kept apart as a whole
            mass = np.where(mass.any(axis=1, keepdims=True), mass, fallback).astype(np.float32)
        centroids = row_centroids(weight[part], mass, 1 << bits, ITERATIONS, seed=start)
        tables[part], scales[part] = RowTableLinear.rounded_tables(centroids)
        stored = tables[part] * scales[part].astype(np.float32)[:, None]
        codes[part] = nearest_in_row(weight[part], stored)
    return RowTableLinear.from_codes(codes, tables, scales, bits)
