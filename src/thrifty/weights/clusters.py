"""Weighted k-means: of the numbers of each row by itself, and of vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Floats, Integers

Doubles = npt.NDArray[np.float64]
SAMPLES = (1 << 13, 1 << 15, 1 << 17)  # vectors that centroids settle on, one number after the other
PER_CENTROID = 16  # vectors at least
SLICE = 1 << 17  # distances computed at once: they stay in the second-level cache


def row_centroids(values: Floats, mass: Floats, count: int, iterations: int, seed: int) -> Floats:
    """argmin over c of Σᵢ mᵢ·min_k (vᵢ − c_k)² for each row, by Lloyd's algorithm from k-means++ seeds: fp32 [rows,
    count], rising.

    values, mass: fp32 [rows, columns]; mass ≥ 0, and not 0 all over a row. Exact: numbers are sorted once, so that a
    cluster is a run of them, and its mean the difference of two prefix sums, in fp64.
    """
    order = np.argsort(values, axis=1, kind="stable")
    sorted_values = np.take_along_axis(values, order, axis=1).astype(np.float64)
    sorted_mass = np.take_along_axis(mass, order, axis=1).astype(np.float64)
    sorted_mass /= sorted_mass.sum(axis=1, keepdims=True)
    centroids = np.sort(_seeds(sorted_values, sorted_mass, count, np.random.default_rng(seed)), axis=1)
    of_mass, of_product = _prefix_sums(sorted_mass), _prefix_sums(sorted_mass * sorted_values)
    runs = _Runs(sorted_values)
    before: Integers | None = None
    for _ in range(iterations):
        borders = runs.borders(centroids)
        if before is not None and np.array_equal(borders, before):
            break
        before = borders
        total = np.diff(np.take_along_axis(of_mass, borders, axis=1), axis=1)
        product = np.diff(np.take_along_axis(of_product, borders, axis=1), axis=1)
        centroids = np.divide(product, total, out=centroids.copy(), where=total > 0)  # without mass it stays
    return centroids.astype(np.float32)


def _seeds(values: Doubles, mass: Doubles, count: int, random: np.random.Generator) -> Doubles:
    """k-means++: each next seed is drawn with a probability of mass times squared distance to the nearest so far."""
    seeds = np.empty((len(values), count))
    distance = mass
    for place in range(count):
        cumulated = np.cumsum(distance, axis=1)
        drawn = random.random((len(values), 1)) * cumulated[:, -1:]
        chosen = np.minimum((cumulated <= drawn).sum(axis=1), values.shape[1] - 1)
        seeds[:, place] = values[np.arange(len(values)), chosen]
        own = mass * np.square(values - seeds[:, place : place + 1])
        distance = own if place == 0 else np.minimum(distance, own)
    return seeds


def _prefix_sums(values: Doubles) -> Doubles:
    return np.concatenate((np.zeros((len(values), 1)), np.cumsum(values, axis=1)), axis=1)


class _Runs:
    """Where centroids split sorted rows. All rows lie one behind the other on one axis, each with a length of 1 and a
    gap behind, so that one binary search serves all of them.
    """

    def __init__(self, values: Doubles) -> None:
        self.low = values[:, :1]
        span = values[:, -1:] - self.low
        self.span = np.where(span > 0, span, 1.0)
        self.start = 2.0 * np.arange(len(values))[:, None]
        self.columns = values.shape[1]
        self.axis = self._placed(values).reshape(-1)

    def borders(self, centroids: Doubles) -> Integers:
        """int64 [rows, count + 1]: cluster k of a row is what lies in its places borders[k] to borders[k + 1]."""
        middles = (centroids[:, 1:] + centroids[:, :-1]) / 2
        places = np.searchsorted(self.axis, self._placed(middles).reshape(-1)).reshape(middles.shape)
        borders = np.zeros((len(centroids), centroids.shape[1] + 1), np.int64)
        borders[:, 1:-1] = places - np.arange(len(centroids))[:, None] * self.columns
        borders[:, -1] = self.columns
        return borders

    def _placed(self, values: Doubles) -> Doubles:
        return (values - self.low) / self.span + self.start


def nearest_in_row(values: Floats, centroids: Floats) -> npt.NDArray[np.uint8]:
    """Places of the nearest of each row's rising centroids fp32 [rows, count] for values fp32 [rows, columns]."""
    codes = np.zeros(values.shape, np.uint8)
    for middle in ((centroids[:, 1:] + centroids[:, :-1]) / 2).T:
        codes += values > middle[:, None]
    return codes


def vector_centroids(
    vectors: Floats, mass: Floats, count: int, *, iterations: int, tolerance: float, seed: int
) -> Floats:
    """argmin over c of Σᵢ mᵢ·min_k ‖vᵢ − c_k‖², fp32 [count, length], by Lloyd's algorithm from vectors at random.

    vectors: fp32 [n, length]; mass: fp32 [n], ≥ 0. Centroids settle on few of the vectors first, drawn at random, then
    on more (`SAMPLES`): so most steps are short. On each they settle when the sum falls by less than `tolerance` of
    itself. Of fewer vectors than centroids each is its own, and the rest are 0.
    """
    centroids = np.zeros((count, vectors.shape[1]), np.float32)
    if len(vectors) <= count:
        centroids[: len(vectors)] = vectors
        return centroids
    drawn = np.random.default_rng(seed).permutation(len(vectors))[: SAMPLES[-1]]
    vectors, weights = vectors[drawn], (mass if mass.any() else np.ones_like(mass))[drawn].astype(np.float64)
    centroids[:] = vectors[:count]
    for size in SAMPLES:
        part = slice(max(size, PER_CENTROID * count))
        _settle(centroids, vectors[part], weights[part], iterations, tolerance)
    return centroids


def _settle(centroids: Floats, vectors: Floats, weights: Doubles, iterations: int, tolerance: float) -> None:
    """Lloyd's steps on these vectors, in place; a centroid that no mass chose stays."""
    before = np.inf
    for _ in range(iterations):
        codes = nearest(vectors, centroids)
        error = float((weights * np.square(vectors - centroids[codes]).sum(axis=1)).sum())
        if before - error <= tolerance * error:
            break
        before = error
        total = np.bincount(codes, weights, len(centroids))
        there = total > 0
        for axis in range(vectors.shape[1]):
            sums = np.bincount(codes, weights * vectors[:, axis], len(centroids))
            centroids[there, axis] = sums[there] / total[there]


def nearest(vectors: Floats, centroids: Floats) -> Integers:
    """The centroid at the least Euclidean distance of each vector: int64 [n]."""
    half = np.square(centroids).sum(axis=1) / 2
    step = max(1, SLICE // len(centroids))
    parts = [
        (half - vectors[start : start + step] @ centroids.T).argmin(axis=1) for start in range(0, len(vectors), step)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
