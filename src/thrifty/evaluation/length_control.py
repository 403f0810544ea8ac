"""Win rates at equal length: judges like long answers, and a logistic model takes that out (AlpacaEval LC, 2404.04475).

The published model is logit P(preferred) = θ + φ·tanh(Δlength / its standard deviation) + ψ·difficulty of the
instruction, with the lengths' term set to 0 for the result. Here the term of difficulty is left out (it was fitted on
the answers of many models to the published instructions), and a ridge of 1/100 stands for the cross-validated L1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thrifty.arrays import Array

RIDGE = 0.01
ROUNDS, ENOUGH = 100, 1e-10


def length_controlled(preferred: Sequence[float], lengths: Sequence[int], baseline_lengths: Sequence[int]) -> float:
    """The preference at equal lengths. preferred: [pairs] 0 to 1, that of the judge for one side's answers. lengths,
    baseline_lengths: [pairs] characters of both sides' answers. Where all pairs differ by the same length,
    nothing of it can be told apart from the preference, and the plain mean is given.
    """
    wanted = np.asarray(preferred, np.float64)
    difference = np.asarray(lengths, np.float64) - np.asarray(baseline_lengths, np.float64)
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    if spread == 0:
        return float(wanted.mean())
    features = np.stack([np.ones_like(wanted), np.tanh(difference / spread)], axis=1)
    return float(_logistic(fitted(features, wanted)[0]))


def fitted(features: Array, wanted: Array) -> Array:
    """[features]: the weights of the logistic model with the least cross-entropy. features: [pairs, features].

    Newton's method, each step halved until it does not lead upwards; the loss is convex, so there is one answer.
    """
    weights: Array = np.zeros(features.shape[1])
    for _ in range(ROUNDS):
        likely = _logistic(features @ weights)
        slope = features.T @ (likely - wanted) + RIDGE * weights
        curvature = features.T @ (features * (likely * (1 - likely))[:, None]) + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(curvature, slope)
        while loss(features, wanted, weights - step) > loss(features, wanted, weights) and np.abs(step).max() > ENOUGH:
            step /= 2
        weights = weights - step
        if np.abs(step).max() <= ENOUGH:
            break
    return weights


def loss(features: Array, wanted: Array, weights: Array) -> float:
    """Cross-entropy summed over the pairs, in nats, and the ridge."""
    scores = features @ weights
    return float((np.logaddexp(0, scores) - wanted * scores).sum() + RIDGE * (weights @ weights) / 2)


def _logistic(scores: Array) -> Array:
    logistic: Array = np.exp(-np.logaddexp(0, -scores))
    return logistic
