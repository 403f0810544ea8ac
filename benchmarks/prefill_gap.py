"""How long a running chat waits for its next token while a long prompt prefills: in slices of layers and without.

    python benchmarks/prefill_gap.py [--model smollm2-135m] [--prompt 6000] [--chunk 512]

One chat decodes, a prompt arrives; the gaps between the chat's tokens are counted until the prompt's first token. The
prompt alone, in an idle engine, is what its prefill is compared with. A round in which other processes took more than
1 % of the CPU is void and repeated (--noisy counts it). A table first, one line of JSON last; the exit code is 1 where
the slices' p99 gap is above --bar milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

import torch

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Handle, Request
from thrifty.evaluation.measuring.noise import LIMIT, listening
from thrifty.evaluation.text import held_out
from thrifty.models.loading import load

CHAT = 128
TABLES: dict[str, list[dict[str, Any]]] = {
    "full": [],
    "snapkv": [{"technique": "snapkv", "capacity": 1024}],
}


def first_token(engine: Engine, handle: Handle, chat: Handle | None) -> tuple[float, list[float]]:
    """Seconds until the prompt's first token, and the chat's gaps on the way."""
    begun = last = time.perf_counter()
    gaps = []
    while not handle.samples[0].token_ids:
        held = 0 if chat is None else len(chat.samples[0].token_ids)
        engine.step()
        now = time.perf_counter()
        if chat is not None and len(chat.samples[0].token_ids) > held:
            gaps.append(now - last)
            last = now
    return time.perf_counter() - begun, gaps


def one_round(engine: Engine, tokens: list[int], cache: list[dict[str, Any]]) -> dict[str, Any]:
    """The prompt alone, then beside a chat."""
    prompt = Request(prompt=tokens[CHAT:], sampling=SamplingParameters(max_tokens=1, ignore_eos=True), cache=cache)
    alone, _ = first_token(engine, engine.submit(prompt), None)
    chat = engine.submit(Request(prompt=tokens[:CHAT], sampling=SamplingParameters(max_tokens=4096, ignore_eos=True)))
    for _ in range(20):
        engine.step()
    beside, gaps = first_token(engine, engine.submit(prompt), chat)
    chat.cancel()
    return {"alone": alone, "beside": beside, "gaps": gaps}


def summary(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """p50, p99 and maximum of all gaps in milliseconds, and how much longer the prefill took beside the chat."""
    gaps = sorted(gap * 1e3 for one in rounds for gap in one["gaps"])
    return {
        "p50_ms": gaps[len(gaps) // 2],
        "p99_ms": gaps[min(len(gaps) - 1, int(len(gaps) * 0.99))],
        "max_ms": gaps[-1],
        "gaps": len(gaps),
        "prefill_s": statistics.median(one["beside"] for one in rounds),
        "slowdown": statistics.median(one["beside"] / one["alone"] for one in rounds),
    }


def main() -> int:
    """Run both ways in turn; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompt", type=int, default=6000)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--cache", choices=TABLES, default="full")
    parser.add_argument("--slice", type=float, default=25.0, help="milliseconds of a slice")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--noisy", action="store_true", help="count rounds that other processes disturbed")
    parser.add_argument("--bar", type=float, default=100.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load(options.model, threads=options.threads)
    tokens = held_out(model.tokenizer, CHAT + options.prompt)
    found: dict[str, list[dict[str, Any]]] = {}
    void = 0
    ways = {"slices": options.slice, "whole chunks": 0.0}
    engines = {
        name: Engine(
            model, threads=options.threads, chunk=options.chunk, prefill_slice_ms=milliseconds, prefix_tree=False
        )
        for name, milliseconds in ways.items()
    }
    while len(found.get("whole chunks", [])) < options.rounds and void <= 2 * options.rounds:
        with listening() as noise:
            rounds = {name: one_round(engine, tokens, TABLES[options.cache]) for name, engine in engines.items()}
        if noise.void and not options.noisy:
            void += 1
            continue
        for name, one in rounds.items():
            found.setdefault(name, []).append(one)
    if not found:
        raise SystemExit(f"all {void} rounds are void: other processes took more than {LIMIT:.0%} of the CPU")
    return report(options, {name: summary(rounds) for name, rounds in found.items()}, void)


def report(options: argparse.Namespace, found: dict[str, dict[str, float]], void: int) -> int:
    """Print the table and the JSON line."""
    print(f"{options.model}, a chat while {options.prompt} tokens prefill ({options.cache}), {options.threads} threads")
    print(f"{'prefill in':<16}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'gaps':>7}{'prefill s':>11}{'slowdown':>10}")
    for name, one in found.items():
        print(
            f"{name:<16}{one['p50_ms']:>9.1f}{one['p99_ms']:>9.1f}{one['max_ms']:>9.1f}{one['gaps']:>7.0f}"
            f"{one['prefill_s']:>11.2f}{one['slowdown']:>9.2f}x"
        )
    rounded = {name: {key: round(value, 3) for key, value in one.items()} for name, one in found.items()}
    print(
        json.dumps({"prompt": options.prompt, "chunk": options.chunk, "cache": options.cache, "void": void, **rounded})
    )
    return int(found["slices"]["p99_ms"] > options.bar)


if __name__ == "__main__":
    raise SystemExit(main())
