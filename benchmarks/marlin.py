"""How the speed-up of 4-bit weights over bf16 weights holds as the batch grows from 1 to 64 rows.

    python benchmarks/marlin.py --threads 1

The layouts alternate in every pass: dense bf16, MARLIN's (symmetric int4, groups of 128), and int4 with minimums in
groups of 32, which `rtn` makes by default. Copies of a layer are larger than the caches and are passed over in turn, so
that every product reads memory. Times are medians of the passes: of processor time a row, which others who compute
hardly change with one thread, and on the clock. `ideal` is the ratio of bytes; `share` is what of it is reached.
`memory` is the time of reading MARLIN's bytes once; a product that takes much longer is bound by arithmetic.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np

from thrifty.arrays import BFLOAT16
from thrifty.evaluation.measuring.noise import LIMIT, listening
from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear
from thrifty.kernels import dispatch

BATCHES = (1, 2, 4, 8, 16, 32, 64)


def layouts(out_features: int, in_features: int) -> dict[str, PackedLinear]:
    """The three ways to store the same random weights."""
    weight = np.random.default_rng(0).standard_normal((out_features, in_features), np.float32)
    return {
        "bf16": DenseLinear.from_weight(weight, BFLOAT16, packed=True),
        "marlin": GroupLinear.quantize(weight, 4, 128, symmetric=True),
        "int4-g32": GroupLinear.quantize(weight, 4, 32),
    }


def copies(linear: PackedLinear, megabytes: int) -> list[Any]:
    """Native layers with arrays of their own, `megabytes` of them in all, at least one."""
    count = max(1, megabytes * 1_000_000 // linear.nbytes)
    meta, state = linear.meta(), linear.state()
    own = [PackedLinear.from_state(meta, {name: array.copy() for name, array in state.items()}) for _ in range(count)]
    return [dispatch.packed(layer) for layer in own]


def timed(held: Mapping[str, list[Any]], columns: int, rows: int, passes: int) -> dict[str, tuple[float, float]]:
    """By layout: seconds of processor and clock of one product, medians of some passes, the first left out."""
    matmul = dispatch.require().matmul
    x = np.random.default_rng(1).standard_normal((rows, columns), np.float32)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in held}
    for _ in range(passes + 1):
        for name, layers in held.items():
            y = np.empty((rows, layers[0].out_features), np.float32)
            clock, processor = time.perf_counter(), time.process_time()
            for layer in layers:
                matmul(layer, x, y)
            spent = time.process_time() - processor, time.perf_counter() - clock
            taken[name].append((spent[0] / len(layers), spent[1] / len(layers)))
    return {name: (median(p for p, _ in own[1:]), median(c for _, c in own[1:])) for name, own in taken.items()}


def main() -> None:
    """A line for each batch, then all of them as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1536x8960", help="in x out")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--megabytes", type=int, default=128, help="copies of each layer, in all")
    parser.add_argument("--passes", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    dispatch.set_threads(options.threads)
    columns, out_features = (int(part) for part in options.shape.split("x"))
    stored = layouts(out_features, columns)
    held = {name: copies(linear, options.megabytes) for name, linear in stored.items()}
    ideal, table = stored["bf16"].nbytes / stored["marlin"].nbytes, []
    module = dispatch.require()
    print(f"{module.isa()}, {dispatch.threads()} threads, {columns} in, {out_features} out; ideal {ideal:.2f}")
    print(f"{'':>6} {'processor, µs a row':^27} {'memory':>8} {'bf16 / marlin':>15} {'':>6} {'int4-g32 /':>10}")
    print(
        f"{'batch':>6} {'bf16':>8} {'marlin':>9} {'int4-g32':>9} {'µs a row':>8} {'processor':>9} {'clock':>6} ", end=""
    )
    print(f"{'share':>5} {'marlin':>10}")
    for rows in (int(part) for part in options.batches.split(",")):
        with listening() as noise:
            bandwidth = module.read_bandwidth(256, 3)
            times = timed(held, columns, rows, options.passes)
        ratio = times["bf16"][0] / times["marlin"][0]
        row = {
            "batch": rows,
            "processor_us_a_row": {name: 1e6 * own[0] / rows for name, own in times.items()},
            "clock_us_a_row": {name: 1e6 * own[1] / rows for name, own in times.items()},
            "memory_us_a_row": stored["marlin"].nbytes / bandwidth / 1e3 / rows,
            "processor_ratio": ratio,
            "clock_ratio": times["bf16"][1] / times["marlin"][1],
            "others": noise.others,
        }
        table.append(row)
        shown = " ".join(f"{1e6 * own[0] / rows:9.1f}" for own in times.values())
        void = f"  clock void: others took {noise.others:.0%}" if noise.others > LIMIT else ""
        print(
            f"{rows:6}{shown} {row['memory_us_a_row']:8.1f} {ratio:9.2f} {row['clock_ratio']:6.2f} "
            f"{ratio / ideal:5.0%} {times['int4-g32'][0] / times['marlin'][0]:10.2f}{void}",
            flush=True,
        )
    print(json.dumps({"benchmark": "marlin", "shape": options.shape, "threads": options.threads, "rows": table}))


if __name__ == "__main__":
    main()
