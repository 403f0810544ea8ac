"""How near the products of every stored weight come to what its bytes alone predict.

    python benchmarks/weights.py --shape 1536x8960 --rows 1,8,64

Every format that exists is there, in each of its widths (`PackedLinear.examples`). Copies of a layer are larger than
the caches and are passed over in turn, so that every product reads memory. `predicted` is the time in which the read
kernel gets through as many bytes on the same threads, measured just before and just after; `share` is what of that rate
the product reaches (of 1 row: decoding). The median of some passes. Nothing else may compute meanwhile.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from thrifty.arrays import Floats
from thrifty.evaluation.measuring.noise import LIMIT, listening
from thrifty.formats.linear import PackedLinear
from thrifty.formats.packed import formats
from thrifty.kernels import dispatch


@dataclass(frozen=True)
class Row:
    """One format and number of rows. seconds of a product, predicted seconds, and what others took of the machine."""

    label: str
    kind: str
    bits_per_weight: float
    rows: int
    milliseconds: float
    predicted: float
    share: float
    others: float


def layers(out_features: int, in_features: int, wanted: str) -> Iterator[PackedLinear]:
    """Every format in every width; wanted: a part of the label."""
    for kind in formats():
        for linear in kind.examples(out_features, in_features):
            if wanted in linear.label and linear.native() is not None:
                yield linear


def copies(linear: PackedLinear, megabytes: int) -> list[Any]:
    """Native layers with arrays of their own, `megabytes` of them in all, at least one."""
    count = max(1, megabytes * 1_000_000 // linear.nbytes)
    meta, state = linear.meta(), linear.state()
    own = [PackedLinear.from_state(meta, {name: array.copy() for name, array in state.items()}) for _ in range(count)]
    return [dispatch.packed(layer) for layer in own]


def seconds(held: list[Any], x: Floats, passes: int) -> float:
    """Seconds of one product: the median of some passes through all copies, the first left out."""
    matmul, y, taken = dispatch.require().matmul, np.empty((len(x), held[0].out_features), np.float32), []
    for _ in range(passes + 1):
        start = time.perf_counter()
        for layer in held:
            matmul(layer, x, y)
        taken.append((time.perf_counter() - start) / len(held))
    return median(taken[1:])


def measured(linear: PackedLinear, rows: list[int], megabytes: int, passes: int) -> Iterator[Row]:
    """The figures of one layer."""
    held, module = copies(linear, megabytes), dispatch.require()
    bits = 8 * linear.nbytes / linear.out_features / linear.in_features
    for count in rows:
        x = np.random.default_rng(1).standard_normal((count, linear.in_features), np.float32)
        with listening() as noise:
            before = module.read_bandwidth(256, 3)
            taken = seconds(held, x, passes)
            bandwidth = (before + module.read_bandwidth(256, 3)) / 2
        predicted = linear.nbytes / bandwidth / 1e9
        yield Row(linear.label, linear.kind, bits, count, 1e3 * taken, 1e3 * predicted, predicted / taken, noise.others)


def main() -> None:
    """A line for each format and number of rows, then all of them as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="", help="only labels with this in them, such as int3")
    parser.add_argument("--shape", default="1536x8960", help="in x out")
    parser.add_argument("--rows", default="1", help="rows of activations, separated by commas")
    parser.add_argument("--megabytes", type=int, default=256, help="copies of each layer, in all")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    dispatch.set_threads(options.threads)
    columns, out_features = (int(part) for part in options.shape.split("x"))
    counts, table = [int(part) for part in options.rows.split(",")], []
    print(f"{dispatch.require().isa()}, {dispatch.threads()} threads, {columns} in, {out_features} out")
    print(f"{'format':16} {'bits/weight':>11} {'rows':>5} {'ms':>8} {'predicted':>9} {'share':>6}")
    for linear in layers(out_features, columns, options.formats):
        for row in measured(linear, counts, options.megabytes, options.passes):
            table.append(asdict(row))
            void = f"  void: others took {row.others:.0%}" if row.others > LIMIT else ""
            print(
                f"{row.label:16} {row.bits_per_weight:11.2f} {row.rows:5} {row.milliseconds:8.3f} {row.predicted:9.3f} "
                f"{row.share:6.0%}{void}",
                flush=True,
            )
    print(json.dumps({"benchmark": "weights", "shape": options.shape, "rows": table}))


if __name__ == "__main__":
    main()
