"""Attention of one decoded token over a long cache, by format: nanoseconds a page of 64 tokens and KV head.

python benchmarks/attention_pages.py [--slots 6144] [--threads 1]

A view of 3 KV heads of 64 channels with 3 query heads each (SmolLM2's shape), one layer, so that the cache stays in the
processor's own caches: what the arithmetic costs. A table for people, one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from thrifty.formats import kv
from thrifty.kernels import dispatch

KV_HEADS, GROUP, HEAD_DIM = 3, 3, 64
REPEATS = 300


def main() -> None:
    """Measure every format and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=6144, help="slots of every head, a multiple of 64")
    parser.add_argument("--threads", type=int, default=1, help="threads of the native pool")
    options = parser.parse_args()
    if options.slots < kv.PAGE or options.slots % kv.PAGE:
        parser.error(f"--slots is {options.slots}; it must be a positive multiple of {kv.PAGE}")
    dispatch.require()
    dispatch.set_threads(options.threads)
    pages = KV_HEADS * options.slots // kv.PAGE
    found = {name: round(seconds(name, options.slots) / pages * 1e9, 1) for name in kv.FORMATS}
    for name, nanoseconds in found.items():
        print(f"{name:8} {nanoseconds:8.1f} ns a page")
    print(json.dumps({"slots": options.slots, "threads": options.threads, "ns_per_page": found}))


def seconds(name: str, slots: int) -> float:
    """The fastest of many calls over a cache in this format."""
    view, memory, random = dispatch.require().View(1, KV_HEADS, HEAD_DIM), [], np.random.default_rng(0)
    for head in range(KV_HEADS):
        size = kv.slab_bytes(name, slots, HEAD_DIM)
        whole = np.zeros(size + kv.ALIGNMENT, np.uint8)
        start = -whole.ctypes.data % kv.ALIGNMENT
        slab = whole[start : start + size]
        kv.write(name, slab, slots, HEAD_DIM, 0, *random.standard_normal((2, slots, HEAD_DIM), np.float32))
        view.push(0, head, slab, slots, slots, kv.FORMATS.index(name), sealed=True)
        memory.append(slab)
    query, best = random.standard_normal((1, KV_HEADS * GROUP, HEAD_DIM), np.float32), float("inf")
    for _ in range(REPEATS):
        before = time.perf_counter()
        dispatch.attend(view, 0, query, scale=HEAD_DIM**-0.5)
        best = min(best, time.perf_counter() - before)
    return best


if __name__ == "__main__":
    main()
