"""The best product of low rank to a matrix, exactly or by random projections."""

from __future__ import annotations

import numpy as np

from thrifty.arrays import Floats

EXACT = 256  # the smaller side of a matrix up to which its whole decomposition is computed
OVERSAMPLING, ITERATIONS = 8, 2


def factors(matrix: Floats, rank: int, seed: int = 0) -> tuple[Floats, Floats]:
    """up fp32 [out, rank] and down fp32 [rank, in] with up·down near `matrix` fp32 [out, in]: U·√S and √S·Vᵀ.

    Of a matrix whose smaller side is above 256 by a randomised decomposition with two power iterations (Halko et al.,
    arXiv 0909.4061, algorithms 4.4 and 5.1). Zeros where the matrix has fewer singular values than `rank`.
    """
    smaller = min(matrix.shape)
    if smaller <= EXACT or rank + OVERSAMPLING >= smaller:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
    else:
        basis = _range(matrix, rank + OVERSAMPLING, np.random.default_rng(seed))
        left, values, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
        left = basis @ left
    kept = min(rank, smaller)
    root = np.sqrt(values[:kept])
    up = np.zeros((matrix.shape[0], rank), np.float32)
    down = np.zeros((rank, matrix.shape[1]), np.float32)
    up[:, :kept], down[:kept] = left[:, :kept] * root, root[:, None] * right[:kept]
    return up, down


def _range(matrix: Floats, columns: int, chance: np.random.Generator) -> Floats:
    """An orthonormal basis [out, columns] of what the matrix stretches most."""
    basis, _ = np.linalg.qr(matrix @ chance.standard_normal((matrix.shape[1], columns), dtype=np.float32))
    for _ in range(ITERATIONS):
        back, _ = np.linalg.qr(matrix.T @ basis)
        basis, _ = np.linalg.qr(matrix @ back)
    return basis
