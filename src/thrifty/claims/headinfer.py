"""HeadInfer: two groups of heads in memory instead of the whole cache, and the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thrifty.arrays import Floats
from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, exactly, times
from thrifty.evaluation.forcing import force
from thrifty.evaluation.recovery import Interval
from thrifty.evaluation.text import held_out
from thrifty.formats.kv import PAGE

OURS = {"technique": "headinfer"}
CODES = {"technique": "kivi", "bits": 2, "residual": 64}
LENGTH, STEPS, TIMED = 4096, 24, 16
READ = 0.9  # of the cache, at every step: else it lies in memory somewhere


@dataclass(frozen=True)
class Run:
    """logits: [steps, vocabulary]. held, peak: bytes of caches in memory between steps, and of all at most. read: bytes
    from the disk a step.
    """

    logits: Floats
    held: int
    peak: int
    read: float


class HeadinferClaim(Claim):
    """Bytes of the cache in memory, logits bit by bit, bytes read, and what it costs in time."""

    paper = "Llama-3-8B at 1M tokens: the cache on the GPU 128 GB to 1 GB (two of 256 heads), all memory 207 to 17 GB"
    source = "arXiv:2502.12574, abstract, which was read; two of 256 heads from notes of the paper"
    rule = "the cache in memory is at most two groups' share of it, and the page that is being filled"
    models = ("smollm2-135m", "qwen2.5-coder-0.5b")
    minutes = 2.0

    def measure(self, context: Context) -> Measurement:
        length = min(LENGTH, context.length - STEPS - 2)
        config = context.model.config
        context.say(f"headinfer after {length} tokens")
        full, ours, codes = (_run(context, tables, length) for tables in ([], [OURS], [CODES]))
        attention = _heads(context)
        whole = full.held
        share = 2 / attention + 2 * PAGE / length
        fast, slow = context.speed([OURS], length=length, steps=TIMED)
        return Measurement(
            headline=exactly("cache in memory of the full cache's", ours.held / whole, Bar(share, at_least=False)),
            parts=(
                exactly("all memory at its peak, weights included, of the full cache's", ours.peak / full.peak, None),
                times("decodes as fast as in memory", fast, slow, None),
            ),
            gates=(
                exactly("steps whose logits differ in a bit", _differ(ours, full), Bar(0.0, at_least=False)),
                exactly("read from the disk a step, of the full cache", ours.read / whole, Bar(READ)),
            ),
            controls=(
                Control("2-bit codes in its place, by the same test of bits", "lose", _point(-_differ(codes, full))),
            ),
            counts={"steps": STEPS},
            setting=(
                f"{length} tokens, {len(config.layers)} layers, groups of one of {attention} heads in all; memory and "
                "disk, where the paper has a GPU and the host's memory"
            ),
        )


def _heads(context: Context) -> int:
    """KV heads of all layers that are moved."""
    model = context.engine.probe().cache_model
    return sum(model.of(layer).kv_heads for layer in model.policy_layers)


def _run(context: Context, tables: Sequence[dict[str, Any]], length: int) -> Run:
    tokens = held_out(context.model.require_tokenizer(), length + STEPS + 1)
    engine = context.fresh(context.model)
    try:
        logits, read, held = [], [], 0
        for step in force(engine, tokens[:length], tokens[length:][:STEPS], tables, logits=True):
            assert step.logits is not None, "they were asked for"
            logits.append(step.logits.copy())
            usage = engine.usage()
            read.append(usage.disk_read)
            held = usage.bytes_of("cache") or held
        steps = read[1:-1]  # bytes are counted when the next step begins; the last step ends the sequence
        return Run(np.stack(logits), held, engine.usage().peak, (steps[-1] - steps[0]) / (len(steps) - 1))
    finally:
        engine.close()


def _differ(one: Run, other: Run) -> float:
    """The share of steps whose logits are not equal, bit by bit."""
    same = (one.logits.view(np.uint32) == other.logits.view(np.uint32)).all(axis=1)
    return float(1 - same.mean())


def _point(value: float) -> Interval:
    return Interval(value, value, value)
