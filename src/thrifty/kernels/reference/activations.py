"""Activations as int8 in blocks of 32 columns, the only activation quantisation of integer matmuls."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Floats
from thrifty.kernels.reference.packing import TILE_COLUMNS, pad_to, padded


def quantise_activations(activations: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Each block of 32 columns to int8 with scale max|x|/127, rounding half to even.

    activations: fp32 [rows, columns] → codes int8 [rows, blocks, 32] (columns padded with zeros), scales fp32
    [rows, blocks]. A block of zeros has scale 0 and codes 0. Every row depends on itself alone.
    """
    rows, columns = activations.shape
    wide = pad_to(activations.astype(np.float32, copy=False), rows, padded(columns, TILE_COLUMNS))
    blocks = wide.reshape(rows, wide.shape[1] // TILE_COLUMNS, TILE_COLUMNS)
    scales = np.abs(blocks).max(axis=-1) / 127
    divisor = np.where(scales == 0, np.float32(1), scales)
    codes = np.clip(np.rint(blocks / divisor[..., None]), -127, 127)
    return np.where(scales[..., None] == 0, np.float32(0), codes).astype(np.int8), scales


def quantise_tokens(
    activations: Floats, threshold: float | None = None
) -> tuple[npt.NDArray[np.int8], Floats, npt.NDArray[np.bool_]]:
    """Each row to int8 with one scale max|x|/127, rounding half to even.

    activations: fp32 [rows, columns] → codes int8 [rows, blocks, 32] (columns padded with zeros), scales fp32 [rows],
    outliers bool [rows, columns]: features of at least `threshold` (None: there are none), whose code is 0 and which no
    scale counts. A row of zeros has scale 0. Every row depends on itself alone.
    """
    rows, columns = activations.shape
    values = activations.astype(np.float32, copy=False)
    outliers = np.zeros(values.shape, np.bool_) if threshold is None else np.abs(values) >= np.float32(threshold)
    inside = np.where(outliers, np.float32(0), values)
    scales = np.abs(inside).max(axis=1, initial=0) / np.float32(127)
    divisor = np.where(scales == 0, np.float32(1), scales)
    codes = np.clip(np.rint(inside / divisor[:, None]), -127, 127)
    codes[scales == 0] = 0
    wide = pad_to(codes.astype(np.int8), rows, padded(columns, TILE_COLUMNS))
    return wide.reshape(rows, -1, TILE_COLUMNS), scales, outliers
