"""Every tensor type that is read, by ggml's name, and the exact values of its raw bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from thrifty.arrays import Bytes, Floats
from thrifty.kernels.reference.ggml import iq4, k_quants, legacy
from thrifty.kernels.reference.ggml.blocks import Grouped, TwoLevel

GROUPED: Mapping[str, Callable[[Bytes], Grouped]] = {
    "Q4_0": legacy.q4_0,
    "Q4_1": legacy.q4_1,
    "Q5_0": legacy.q5_0,
    "Q5_1": legacy.q5_1,
    "Q8_0": legacy.q8_0,
    "IQ4_NL": iq4.iq4_nl,
}
"""Types of one level: raw rows uint8 [rows, row bytes] → codes and scales."""

SUPERBLOCK: Mapping[str, Callable[[Bytes], TwoLevel]] = {
    "Q2_K": k_quants.q2_k,
    "Q3_K": k_quants.q3_k,
    "Q4_K": k_quants.q4_k,
    "Q5_K": k_quants.q5_k,
    "Q6_K": k_quants.q6_k,
    "IQ4_XS": iq4.iq4_xs,
}
"""Types of two levels."""

PLAIN = ("F32", "F16", "BF16")
"""Types without codes."""


def values(kind: str, rows: Bytes) -> Floats:
    """The exact fp32 values of raw rows of any type that is read: [rows, row bytes] → [rows, columns]."""
    if kind in GROUPED:
        return GROUPED[kind](rows).values()
    if kind in SUPERBLOCK:
        return SUPERBLOCK[kind](rows).values()
    rows = np.ascontiguousarray(rows)
    if kind == "F32":
        return rows.view("<f4")
    if kind == "F16":
        return rows.view("<f2").astype(np.float32)
    return (rows.view("<u2").astype(np.uint32) << 16).view(np.float32)
