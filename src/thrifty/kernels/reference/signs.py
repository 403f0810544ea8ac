"""Rounding groups of weights to signs: binary (−1, 1) and ternary (−1, 0, 1) with one float16 scale each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Floats
from thrifty.kernels.reference.affine import Halves, to_float16

SignedBytes = npt.NDArray[np.int8]
THRESHOLD = 0.7  # of the mean magnitude (Ternary Weight Networks, arXiv 1605.04711, eq. 6)


def binary(group: Floats) -> tuple[SignedBytes, Halves]:
    """w ≈ scale·sign(w) with scale = mean|w|, the least squared error (XNOR-Net, arXiv 1603.05279, eq. 6).

    group: fp32 [rows, columns] → signs int8 −1 or 1, same shape, and scales fp16 [rows]. The sign of 0 is 1.
    """
    scale = to_float16(np.abs(group).mean(axis=1, dtype=np.float64).astype(np.float32), "group scale")
    return np.where(group < 0, -1, 1).astype(np.int8), scale


def ternary(group: Floats) -> tuple[SignedBytes, Halves]:
    """w ≈ scale·sign(w) where |w| > t, else 0, with t = 0.7·mean|w| and scale the mean |w| above it (arXiv 1605.04711,
    eqs. 3 to 6). Shapes as `binary`; a row without any weight above t has scale 0.
    """
    magnitude = np.abs(group)
    threshold = THRESHOLD * magnitude.mean(axis=1, keepdims=True, dtype=np.float64)
    kept = magnitude > threshold
    count = kept.sum(axis=1)
    total = np.where(kept, magnitude, 0).sum(axis=1, dtype=np.float64)
    scale = to_float16((total / np.maximum(count, 1)).astype(np.float32), "group scale")
    return np.where(kept, np.sign(group), 0).astype(np.int8), scale
