"""k-means by prefix sums against Lloyd's steps written out."""

from __future__ import annotations

import numpy as np
import pytest

from thrifty.arrays import Floats
from thrifty.weights.clusters import nearest, nearest_in_row, row_centroids, vector_centroids


def lloyd_step(values: Floats, mass: Floats, centroids: Floats) -> Floats:
    """Every number to its nearest centroid, every centroid to the mean of its own."""
    own = [int(np.argmin([(value - c) ** 2 for c in centroids])) for value in values.astype(np.float64)]
    moved = centroids.astype(np.float64)
    for k in range(len(centroids)):
        total = sum(float(m) for m, code in zip(mass, own, strict=True) if code == k)
        if total > 0:
            pairs = zip(values, mass, own, strict=True)
            moved[k] = sum(float(v) * float(m) for v, m, code in pairs if code == k) / total
    return moved.astype(np.float32)


def error(values: Floats, mass: Floats, centroids: Floats) -> float:
    distances = np.square(values[:, :, None].astype(np.float64) - centroids[:, None, :]).min(-1)
    return float((mass * distances).sum())


def test_centroids_of_rows_are_where_lloyd_stays() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((6, 40)).astype(np.float32)
    mass = (random.random((6, 40)) ** 4).astype(np.float32)
    values[4] *= 1e-4
    values[5] += 1000
    found = row_centroids(values, mass, 8, 200, seed=1)
    assert (np.diff(found, axis=1) >= 0).all()
    for row in range(6):
        assert np.allclose(lloyd_step(values[row], mass[row], found[row]), found[row], rtol=1e-5, atol=1e-8)
        spread = np.linspace(values[row].min(), values[row].max(), 8)[None].astype(np.float32)
        own = slice(row, row + 1)
        assert error(values[own], mass[own], found[own]) < error(values[own], mass[own], spread)


def test_one_step_is_lloyds() -> None:
    """From the same seeds, one step and no more."""
    random = np.random.default_rng(3)
    values, mass = random.standard_normal((3, 30)).astype(np.float32), random.random((3, 30)).astype(np.float32)
    seeds, step = row_centroids(values, mass, 4, 0, seed=5), row_centroids(values, mass, 4, 1, seed=5)
    assert all(seed in values[row] for row in range(3) for seed in seeds[row])
    for row in range(3):
        assert np.allclose(step[row], lloyd_step(values[row], mass[row], seeds[row]), rtol=1e-6)


def test_weights_decide_where_values_lie() -> None:
    values = np.array([[0, 1, 10, 11]], np.float32)
    found = row_centroids(values, np.array([[1, 1, 1, 0]], np.float32), 2, 50, seed=0)
    assert found.tolist() == [[0.5, 10]]
    same = row_centroids(np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32), 2, 50, seed=0)
    assert same.tolist() == [[0, 0]]


def test_the_nearest_in_a_row_is_the_nearest() -> None:
    random = np.random.default_rng(0)
    values, centroids = random.standard_normal((5, 33)), np.sort(random.standard_normal((5, 16)), axis=1)
    expected = np.abs(values[..., None] - centroids[:, None]).argmin(-1)
    assert np.array_equal(nearest_in_row(values.astype(np.float32), centroids.astype(np.float32)), expected)


def test_vectors_move_to_weighted_means() -> None:
    random = np.random.default_rng(0)
    middles = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    vectors = (middles[random.integers(0, 3, 300)] + 0.1 * random.standard_normal((300, 2))).astype(np.float32)
    mass = random.random(300).astype(np.float32)
    found = min(
        (vector_centroids(vectors, mass, 3, iterations=50, tolerance=1e-6, seed=seed) for seed in range(5)),
        key=lambda centroids: float(np.square(vectors - centroids[nearest(vectors, centroids)]).sum()),
    )
    codes = np.array([int(np.argmin([np.square(vector - c).sum() for c in found])) for vector in vectors])
    assert np.array_equal(nearest(vectors, found), codes)
    for k in range(3):
        own = codes == k
        assert np.allclose(found[k], (mass[own, None] * vectors[own]).sum(0) / mass[own].sum(), atol=1e-4)


@pytest.mark.parametrize("count", [4, 16])
def test_fewer_vectors_than_centroids_are_kept(count: int) -> None:
    vectors = np.arange(8, dtype=np.float32).reshape(4, 2)
    found = vector_centroids(vectors, np.zeros(4, np.float32), count, iterations=9, tolerance=0, seed=0)
    assert found.shape == (count, 2) and np.array_equal(found[:4], vectors) and not found[4:].any()
