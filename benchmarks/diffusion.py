"""Tokens a forward pass against quality: a masked-diffusion model beside its autoregressive twin.

    python benchmarks/diffusion.py                       # 200 items, some minutes on one core
    python benchmarks/diffusion.py --items 60 --rounds 2 --json-only
    python benchmarks/diffusion.py --shape smollm2-135m  # the prefix cache on that model's sizes, its answers unused

Both models have the same sizes, words and texts (training/diffusion). Quality is the share of answers that are right,
to the letter, on questions that neither was trained on. A pass is one step of the engine, the prompt's among them: the
twin makes one token a pass. Every way to decode runs on the same items; intervals are of items drawn again. Rates are
of answers in batches of 1 and 8, medians of alternating rounds; a figure is marked void where others took more than a
hundredth of the machine. A table first, one JSON line last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thrifty.claims.harness.scores.timing import rounds
from thrifty.decoding.canvas import RULES
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.engine.runner import CHUNK
from thrifty.evaluation.letters import ROOM, Answered, Item, answers, judged
from thrifty.evaluation.paired import Clustered, mean_interval
from thrifty.models.loading import load
from thrifty.models.model import Model

PLACES = 12  # of a canvas: with the token before it, the longest answer and its end
BATCHES = (1, 8)
WAYS: dict[str, list[dict[str, Any]]] = {
    **{
        f"dimple, p > {p:g}": [{"technique": "dimple", "length": PLACES, "threshold": p}]
        for p in (0.5, 0.8, 0.95, 0.99)
    },
    **{
        f"{rule}, {steps} steps": [
            {"technique": "dimple", "length": PLACES, "threshold": 0.0, "steps": steps, "rule": rule}
        ]
        for steps in (PLACES, PLACES // 2, PLACES // 4)
        for rule in RULES
    },
    **{
        f"lavida, {ratio:g} a place": [{"technique": "lavida", "length": PLACES, "ratio": ratio}]
        for ratio in (1.0, 0.5, 0.25)
    },
    "dimple, blocks of 4": [{"technique": "dimple", "length": 4}],
    "daedal": [{"technique": "daedal"}],
}
TIMED = ("twin", "dimple, p > 0.95", "daedal")


def main() -> None:
    """Run and print."""
    given = parsed()
    diffusion, twin = load(given.model), load("letters-twin")
    items = judged(given.items, given.seed)
    result: dict[str, Any] = {"model": given.model, "items": len(items), "seed": given.seed, "threads": given.threads}
    with_engines = {"twin": opened(twin, given.threads)}
    other = opened(diffusion, given.threads)
    with_engines |= dict.fromkeys(WAYS, other)
    try:
        result["quality"] = [row(name, answers(engine, items, WAYS.get(name))) for name, engine in with_engines.items()]
        result["rates"] = rates(with_engines, items, given.rounds)
    finally:
        with_engines["twin"].close()
        other.close()
    if given.shape is not None:
        result["prefix_cache"] = prefix_cache(load(given.shape), given)
    if not given.json_only:
        table(result)
    sys.stdout.write(json.dumps(result) + "\n")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="letters-diffusion", help="or a folder of another training of it")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", default=None, help="a model on whose sizes the prefix cache is timed")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of that timing's prompt")
    parser.add_argument("--json-only", action="store_true")
    return parser.parse_args()


def opened(model: Model, threads: int) -> Engine:
    """An engine that shares no prefixes: every prompt is computed."""
    return Engine(model, threads=threads, prefix_tree=False)


def row(name: str, made: Sequence[Answered]) -> dict[str, Any]:
    """What came of a way to decode."""
    right = Clustered(tuple(float(own.right) for own in made), tuple(map(str, range(len(made)))), bounded=True)
    interval = mean_interval(right)
    tokens, passes = sum(own.tokens for own in made), sum(own.passes for own in made)
    return {
        "way": name,
        "right": interval.value,
        "low": max(0.0, interval.low),
        "high": min(1.0, interval.high),
        "tokens_a_pass": tokens / passes,
        "tokens": tokens,
        "passes": passes,
    }


def rates(engines: Mapping[str, Engine], items: Sequence[Item], count: int) -> list[dict[str, Any]]:
    """Tokens a second of the ways that are timed, by batch."""
    made = []
    for batch in BATCHES:
        sides = {name: rate(engines[name], items[:32], WAYS.get(name), batch) for name in TIMED}
        for name, scores in rounds(sides, count).items():
            median = statistics.median(scores.values)
            made.append({"way": name, "batch": batch, "tokens_a_second": median, "void": scores.void})
    return made


def rate(
    engine: Engine, items: Sequence[Item], decoding: list[dict[str, Any]] | None, batch: int
) -> Callable[[], float]:
    """A measurement: tokens of all answers a second, so many at a time."""
    tokenizer = engine.model.require_tokenizer()
    prompts = [tokenizer.encode(item.prompt, add_bos=True) for item in items]
    sampling = SamplingParameters.of(greedy=True, max_tokens=ROOM)

    def measure() -> float:
        began, tokens = time.perf_counter(), 0
        for first in range(0, len(prompts), batch):
            asked = [
                Request(prompt=one, sampling=sampling, decoding=decoding) for one in prompts[first : first + batch]
            ]
            handles = [engine.submit(one) for one in asked]
            tokens += sum(len(handle.result().token_ids) for handle in handles)
        return tokens / (time.perf_counter() - began)

    return measure


def prefix_cache(model: Model, given: argparse.Namespace, passes: int = 6) -> dict[str, Any]:
    """Seconds of an answer of `passes` passes behind a prompt whose keys are kept, and of passes over the whole; the
    model's weights as they are, one of its tokens for a mask: its answers mean nothing.
    """
    masked = dataclasses.replace(model, config=dataclasses.replace(model.config, mask_id=0))
    chunk = max(CHUNK, 1 << (given.prompt + PLACES).bit_length())
    engine = Engine(masked, threads=given.threads, prefix_tree=False, chunk=chunk)
    prompt = [3 + place % 200 for place in range(given.prompt)]
    try:
        made = rounds(
            {
                "kept": lambda: kept_seconds(engine, prompt, passes),
                "whole": lambda: whole_seconds(engine, prompt, passes),
            },
            given.rounds,
        )
    finally:
        engine.close()
    kept, whole = (statistics.median(made[name].values) for name in ("kept", "whole"))
    void = made["kept"].void
    return {
        "model": given.shape,
        "prompt": given.prompt,
        "kept_s": kept,
        "whole_s": whole,
        "times": whole / kept,
        "void": void,
    }


def kept_seconds(engine: Engine, prompt: Sequence[int], passes: int) -> float:
    """One answer: the prompt once, then passes over the canvas."""
    decoding = [{"technique": "lavida", "length": PLACES, "ratio": passes / PLACES}]
    sampling = SamplingParameters(max_tokens=PLACES + 2, ignore_eos=True)
    began = time.perf_counter()
    engine.submit(Request(prompt=prompt, sampling=sampling, decoding=decoding)).result()
    return time.perf_counter() - began


def whole_seconds(engine: Engine, prompt: Sequence[int], passes: int) -> float:
    """As many passes over prompt and canvas, each from the beginning."""
    sampling = SamplingParameters(max_tokens=1, ignore_eos=True)
    whole = [*prompt, *prompt[: PLACES + 1]]
    began = time.perf_counter()
    for _ in range(passes + 1):
        engine.submit(Request(prompt=whole, sampling=sampling)).result()
    return time.perf_counter() - began


def table(result: Mapping[str, Any]) -> None:
    """For people."""
    print(f"{'way':24} {'right':>7} {'interval':>16} {'tokens a pass':>14}")
    for own in result["quality"]:
        interval = f"{100 * own['low']:.1f} to {100 * own['high']:.1f}"
        print(f"{own['way']:24} {100 * own['right']:6.1f}% {interval:>16} {own['tokens_a_pass']:14.2f}")
    print()
    for own in result["rates"]:
        void = f"  VOID: {own['void']}" if own["void"] else ""
        print(f"{own['way']:24} batch {own['batch']}: {own['tokens_a_second']:8.0f} tokens/s{void}")
    cache = result.get("prefix_cache")
    if cache is not None:
        print(
            f"\nprefix cache, sizes of {cache['model']}, prompt {cache['prompt']}: {cache['kept_s']:.2f} s against "
            f"{cache['whole_s']:.2f} s, {cache['times']:.2f} x{'  VOID: ' + cache['void'] if cache['void'] else ''}"
        )


if __name__ == "__main__":
    main()
