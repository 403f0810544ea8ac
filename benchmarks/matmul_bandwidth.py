"""How fast stored weights are read by products with few rows, and how fast many rows are multiplied.

    python benchmarks/matmul_bandwidth.py --layouts q4_k,q6_k --shapes 1536x1536,1536x8960 --rows 1,2,8,64,512

Weights are random bits in one piece of memory, each shape repeated until all its copies are larger than the caches, and
passed over in turn, so that every product reads memory. GB/s counts codes, scales and minimums; `share` is of what the
read kernel gets on the same threads just before (both the best of some passes).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from thrifty.arrays import Array, Floats
from thrifty.kernels import dispatch

RECORDS = {"q2_k": 1280, "q3_k": 1728, "q4_k": 2240, "q5_k": 2752, "q6_k": 3328, "iq4_xs": 2144}
BLOCKS = {"int4": 256, "int4-g32-minimum": 256, "int5": 320, "int5-g32-minimum": 320, "int8": 512, "iq4_nl": 256}
BLOCKS |= {"int4_2_4": 192, "int8_2_4": 320, "bf16_2_4": 576}
MINIMUMS = ("q2_k", "q4_k", "q5_k", "int4-g32-minimum", "int5-g32-minimum")
WITHOUT_SCALES = ("bf16_2_4",)
LAYOUTS = (*BLOCKS, *RECORDS)


@dataclass(frozen=True)
class Weights:
    """Native linears of one shape, and the bytes that a product reads of each."""

    linears: list[Any]
    nbytes: int


def weights(layout: str, rows: int, columns: int, megabytes: int) -> Weights:
    """As many copies as `megabytes` hold, at least one; scales are small, codes any bits."""
    source = np.random.default_rng(0)
    tiles, superblock = -(-rows // 16), layout in RECORDS
    units = columns // (256 if superblock else 32)
    unit_bytes = RECORDS[layout] if superblock else BLOCKS[layout]
    parameters = (2 if layout in MINIMUMS else 0 if layout in WITHOUT_SCALES else 1) * tiles * units * 32
    nbytes = tiles * units * unit_bytes + parameters
    bits = source.integers(0, 256, tiles * units * unit_bytes, np.uint8).reshape(tiles, units, unit_bytes)
    linears, copies = [], max(1, megabytes * 1_000_000 // nbytes)
    whole = np.empty((copies, *bits.shape), np.uint8)  # large enough for large pages, as files are mapped
    for codes in whole:
        codes[:] = bits
        scales = np.full((tiles, units, 16), 1e-3, np.float16)
        arrays: dict[str, Array | None] = {"codes": codes, "scales": scales, "minimums": None}
        if layout in MINIMUMS:
            arrays["minimums"] = scales.copy()
        if layout in WITHOUT_SCALES:
            arrays["scales"] = None
        group = 0 if superblock or layout in WITHOUT_SCALES else 32
        sizes = {"out_features": rows, "in_features": columns, "group": group}
        linears.append(dispatch.require().Linear(layout=layout.split("-")[0], **arrays, **sizes))
    return Weights(linears, nbytes)


def seconds(stored: Weights, x: Floats, passes: int) -> float:
    """Seconds of one product, in the best of some passes through all copies."""
    matmul, y = dispatch.require().matmul, np.empty((len(x), stored.linears[0].out_features), np.float32)
    taken = []
    for _ in range(passes + 1):
        start = time.perf_counter()
        for linear in stored.linears:
            matmul(linear, x, y)
        taken.append((time.perf_counter() - start) / len(stored.linears))
    return min(taken[1:])


def main() -> None:
    """One line for each layout, shape and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--shapes", default="1536x1536,1536x8960,8960x1536", help="in x out, separated by commas")
    parser.add_argument("--rows", default="1,2,4,8,64,512")
    parser.add_argument("--megabytes", type=int, default=256, help="copies of each weight, in all")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    dispatch.set_threads(options.threads)
    module = dispatch.require()
    print(f"{module.isa()}, {dispatch.threads()} threads (`at`: how many took part; others leave a busy machine)")
    heads = f"{'ms':>8} {'GB/s':>6} {'memory':>6} {'share':>6} {'GFLOP/s':>8}"
    print(f"{'layout':18} {'in x out':>12} {'rows':>5} {'at':>2} {heads}")
    for layout in options.layouts.split(","):
        for shape in options.shapes.split(","):
            columns, rows = (int(part) for part in shape.split("x"))
            stored = weights(layout, rows, columns, options.megabytes)
            for count in (int(part) for part in options.rows.split(",")):
                x = np.random.default_rng(1).standard_normal((count, columns), np.float32)
                bound = module.read_bandwidth(256, 3)
                taken = seconds(stored, x, options.passes)
                rate, operations = stored.nbytes / taken / 1e9, 2e-9 * rows * columns * count / taken
                figures = f"{1e3 * taken:8.3f} {rate:6.1f} {bound:6.1f} {rate / bound:6.0%} {operations:8.0f}"
                at = module.threads_taking_part()
                print(f"{layout:18} {shape:>12} {count:5} {at:2} {figures}", flush=True)


if __name__ == "__main__":
    main()
