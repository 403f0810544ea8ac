"""ggml's tensor types: raw bytes to codes, scales and values. The only place that knows ggml's order of bits."""

from __future__ import annotations

from thrifty.kernels.reference.ggml.blocks import Grouped, TwoLevel
from thrifty.kernels.reference.ggml.types import GROUPED, PLAIN, SUPERBLOCK, values

__all__ = ["GROUPED", "PLAIN", "SUPERBLOCK", "Grouped", "TwoLevel", "values"]
