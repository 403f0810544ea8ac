"""Bytes really freed: for every cache technique, process memory follows the ledger down, by 200 MB and more.

A cache without a model: 6,656 tokens of 32 heads × 256 channels are 218 MB a layer, which the technique compresses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from thrifty import registry

OPTIONS: dict[str, dict[str, Any]] = {
    "kvmerger": {"keep": 0.5, "first": 0, "last": 0},
    "fastgen": {"recovery": 0.5},
    "kvzip": {"chunk": 64},
}
"""Options that make a technique compress a cache of two layers of noise in seconds; one without an entry runs with its
defaults.
"""

Measured = tuple[int, list[tuple[int, int]]]
"""Layers that are whole just before the last is compressed (0: nothing is), and (process memory, ledger) at each stage,
in bytes.
"""

PROGRAM = """
import ctypes, json, sys
import numpy as np
from thrifty import registry
from thrifty.arrays import BFLOAT16
from thrifty.cache.composition import rehearsing
from thrifty.cache.model_info import ModelInfo, Rotation
from thrifty.cache.pool import Cache
from tests.process_memory import process_memory

TOKENS, HEADS, DIMENSION, LAYERS = 6656, 32, 256, 2

def rotation(layer, positions):
    angles = positions[:, None] * 10000.0 ** (-np.arange(DIMENSION // 2) / (DIMENSION // 2))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

def resident():
    ctypes.CDLL(None).malloc_trim(0)
    return process_memory()

POOL = np.random.default_rng(7).standard_normal((1024, HEADS, DIMENSION), np.float32)  # drawing is dear: done once
HALVES = POOL.astype(BFLOAT16)

def noise(n):
    return POOL[np.arange(n) % len(POOL)]

def rows(n, seed):
    places = (np.arange(n) + 37 * seed) % len(POOL)
    return HALVES[places], HALVES[::-1][places]

def statistics(sequence, n):
    draw = np.random.default_rng(9)
    wanted = sequence.statistics
    queries = None
    if wanted.queries is not None:
        last = n if wanted.queries == "all" else min(n, int(wanted.queries))
        queries = noise(last)
    sums = [draw.random((1, n), np.float32) for _ in range(HEADS)] if wanted.column_sums else None
    return queries, sums

def rehearse(sequence, n):
    run = sequence.begin_rehearsals(list(range(n)))
    for piece in run.pieces:
        run.begin(piece)
        for layer in range(LAYERS):
            sequence.append(layer, *rows(len(piece.tokens), piece.start))
            run.observe(layer, noise(len(piece.tokens)))
        run.end()
    sequence.complete_prompt()

def run(policies, n):
    draw = np.random.default_rng(5)
    scores = {kind: draw.random((LAYERS, HEADS), np.float32) for kind in ("r", "r2")}
    model = ModelInfo(
        heads=HEADS, kv_heads=HEADS, head_dim=DIMENSION, windows=(None,) * LAYERS, rotation=rotation,
        head_scores=scores, instruct=lambda text, quoted: (1, *quoted, 2),
    )
    cache, stages = Cache(model, prefix_tree=False, disk=True), []
    start = resident()
    sequence = cache.create(policies)
    note = lambda: stages.append((resident() - start, cache.ledger.current))
    if sequence.layer_major:
        sequence.remember(list(range(n)), 0)
        for layer in range(LAYERS):
            sequence.begin_layer(layer, n)
            for first in range(0, n, 512):
                sequence.append(layer, *rows(min(512, n - first), first))
            note()
            sequence.observe(layer, *statistics(sequence, n))
            sequence.seal_layer(layer)
        sequence.commit(n)
    else:
        for first in range(0, n, 512):
            some = min(512, n - first)
            sequence.reserve(some)
            for layer in range(LAYERS):
                sequence.append(layer, *rows(some, first))
            sequence.commit(some)
        if sequence.rehearses is not None:
            note()
            rehearse(sequence, n)
    note()
    sequence.free()
    note()
    return stages

for name, options in json.loads(sys.argv[1]).items():
    policies = [registry.build("cache", {"technique": name} | options)]
    run(policies, 512)
    whole = LAYERS if rehearsing(policies[:1]) else 1
    print(json.dumps([name, whole if policies[0].compresses else 0, run(policies, TOKENS)]), flush=True)
"""


@pytest.fixture(scope="module")
def measured() -> dict[str, Measured]:
    """What each technique did."""
    tables = {name: OPTIONS.get(name, {}) for name in registry.names("cache")}
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back to the system at once
    command = [sys.executable, "-c", PROGRAM, json.dumps(tables)]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    return dict(_rows(finished.stdout))


def _rows(printed: str) -> Iterator[tuple[str, Measured]]:
    for line in printed.splitlines():
        name, whole, stages = json.loads(line)
        yield name, (whole, [(int(process), int(ledger)) for process, ledger in stages])


@pytest.mark.model
@pytest.mark.parametrize("name", registry.names("cache"))
def test_process_memory_falls_with_the_ledger(name: str, measured: dict[str, Measured]) -> None:
    layers, stages = measured[name]
    for process, ledger in stages:
        assert abs(process - ledger) <= max(0.05 * ledger, 15e6), f"{name}: {[(a / 1e6, b / 1e6) for a, b in stages]}"
    held = [process for process, _ in stages]
    assert max(held) >= 200e6 and stages[-1][1] == 0
    assert max(held) - held[-1] >= 200e6, "given back at the end"
    if layers:
        whole, compressed = stages[0][1] / layers, stages[-2][1] / 2
        freed = whole - compressed
        assert freed > 0.1 * whole, f"{name} frees {freed / whole:.0%} of a layer"
        assert held[-3] - held[-2] >= freed * layers - 15e6, "the last full copy went when it was compressed"
