"""Arrays: their types, and the few operations for which NumPy has no name."""

from __future__ import annotations

from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

Kind = TypeVar("Kind", bound=np.generic)

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)


def frozen(values: npt.NDArray[Kind]) -> npt.NDArray[Kind]:
    """The same values, contiguous and read-only: a copy, or the array itself where nobody writes to it."""
    owner: Any = values
    while isinstance(owner, np.ndarray) and not owner.flags.writeable:
        owner = owner.base
    if owner is None and values.flags.c_contiguous:
        return values
    copy = np.array(values, order="C")
    copy.flags.writeable = False
    return copy


def squares_fit(values: Floats) -> bool:
    """Whether the squares of each row [..., n] have a finite sum in fp32, which a norm of the row needs."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.einsum("...i,...i->...", values, values)).all())


def largest(values: Array, count: int) -> Integers:
    """Places of the `count` largest of values [n], falling; of equal ones the first."""
    return np.argsort(-values, kind="stable")[:count]


def softmax(logits: Floats, axis: int = -1) -> Floats:
    """exp(logits) / Σ exp(logits) along an axis, in fp32. Where all logits of a row are −inf the result is NaN."""
    weights = np.exp(logits - logits.max(axis=axis, keepdims=True))
    weights /= weights.sum(axis=axis, keepdims=True)
    return weights
