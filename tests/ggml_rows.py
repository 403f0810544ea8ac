"""Random raw rows of ggml's quantised types, with scales of a usual size."""

from __future__ import annotations

import numpy as np

from thrifty.arrays import Bytes
from thrifty.models.gguf.header import TENSOR_TYPES

HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "IQ4_NL": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_XS": (0,),
}
"""The bytes of a block at which its fp16 scales and minimums start."""

SIZES = {name: (block, nbytes) for name, block, nbytes in TENSOR_TYPES.values()}


def random_rows(kind: str, rows: int = 24, columns: int = 512, seed: int = 0) -> Bytes:
    """uint8 [rows, row bytes]: every bit by chance, but those of the fp16 numbers."""
    block, nbytes = SIZES[kind]
    random = np.random.default_rng(seed + nbytes)
    raw = random.integers(0, 256, (rows, columns // block, nbytes), dtype=np.uint8)
    for start in HALVES[kind]:
        scales = random.uniform(-0.1, 0.1, raw.shape[:2]).astype(np.float16)
        raw[:, :, start : start + 2] = scales[..., None].view(np.uint8)
    return raw.reshape(rows, -1)
