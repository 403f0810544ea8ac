"""Attention of a decoded token over a cache in memory, by where its pages lie.

python benchmarks/attention_stripes.py [--slots 6144] [--threads 2] [--rounds 100]

SmolLM2's shape: 30 layers of 3 KV heads of 64 channels in bf16, 3 query heads each. Once every page of 64 tokens is a
range of its own, with all layers and heads in it; once the pages are striped (`storage/stripes.py`), so that a layer's
and head's slabs are one stream. Both in turns. A table for people, one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

from thrifty.arrays import BFLOAT16
from thrifty.formats import kv
from thrifty.kernels import dispatch
from thrifty.storage.arena import Arena
from thrifty.storage.ledger import Ledger

LAYERS, KV_HEADS, GROUP, HEAD_DIM = 30, 3, 3, 64
SLAB = kv.slab_bytes("bf16", kv.PAGE, HEAD_DIM)


def main() -> None:
    """Measure both layouts in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=6144, help="tokens in the cache, a multiple of 64")
    parser.add_argument("--threads", type=int, default=2, help="threads of the native pool")
    parser.add_argument("--rounds", type=int, default=100, help="tokens decoded over each layout")
    options = parser.parse_args()
    if options.slots < kv.PAGE or options.slots % kv.PAGE or options.rounds < 1:
        parser.error(f"--slots must be a positive multiple of {kv.PAGE}, and --rounds at least 1")
    dispatch.require()
    dispatch.set_threads(options.threads)
    made = {name: view(options.slots, name == "striped") for name in ("a range a page", "striped")}
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(options.rounds):
        for name, (one, _) in made.items():
            times[name].append(token(one))
    nbytes = LAYERS * KV_HEADS * options.slots // kv.PAGE * SLAB
    found = {}
    for name, seconds in times.items():
        best, middle = min(seconds), statistics.median(seconds)
        found[name] = {"best_ms": round(best * 1e3, 3), "median_ms": round(middle * 1e3, 3)}
        rates = f"{nbytes / best / 1e9:5.1f} GB/s at best, {nbytes / middle / 1e9:5.1f} in the median"
        print(f"{name:15} {middle * 1e3:6.2f} ms a token ({rates})")
    print(json.dumps({"slots": options.slots, "threads": options.threads, "bytes": nbytes, "layouts": found}))


def view(slots: int, striped: bool) -> tuple[Any, Arena]:
    """A native view over `slots` tokens, and the arena that holds them."""
    arena, made = Arena(Ledger()), dispatch.require().View(LAYERS, KV_HEADS, HEAD_DIM)
    for _ in range(slots // kv.PAGE):
        run = arena.allocate(SLAB, "cache", pieces=LAYERS * KV_HEADS, striped=striped)
        run.pieces.view(BFLOAT16)[:] = 0.01
        for layer in range(LAYERS):
            for head in range(KV_HEADS):
                slab = run.pieces[layer * KV_HEADS + head]
                made.push(layer, head, slab, kv.PAGE, kv.PAGE, kv.FORMATS.index("bf16"), sealed=True)
    return made, arena


def token(view: Any) -> float:
    """Seconds of the attention of all layers."""
    query = np.random.default_rng(0).standard_normal((1, KV_HEADS * GROUP, HEAD_DIM), np.float32)
    before = time.perf_counter()
    for layer in range(LAYERS):
        dispatch.attend(view, layer, query, scale=HEAD_DIM**-0.5)
    return time.perf_counter() - before


if __name__ == "__main__":
    main()
