"""Arrays: their types, and the few operations for which NumPy has no name."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)


def largest(values: Array, count: int) -> Integers:
    """Places of the `count` largest of values [n], falling; of equal ones the first."""
    return np.argsort(-values, kind="stable")[:count]


def softmax(logits: Floats, axis: int = -1) -> Floats:
    """exp(logits) / Σ exp(logits) along an axis, in fp32. Where all logits of a row are −inf the result is NaN."""
    weights = np.exp(logits - logits.max(axis=axis, keepdims=True))
    weights /= weights.sum(axis=axis, keepdims=True)
    return weights
