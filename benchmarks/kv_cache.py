"""Does a smaller cache decode faster in proportion to its bytes? Every cache technique against the full cache.

    python benchmarks/kv_cache.py [--model smollm2-135m] [--context 6144] [--keep 0.3] [--minutes 6]

A decode step reads the weights and the cache, so a cache of fewer bytes allows (weights + full) / (weights + kept)
times the full cache's rate. Each technique that evicts or merges keeps the share --keep of the prompt; each that
quantises is run at its bits. All are prefilled and decoded in turn, round after round; rates are medians over rounds of
the mean over steps, steps in which a policy acts included. A round in which other processes took more than 1 % of the
CPU is void (--noisy counts it). A table first, one line of JSON last; the exit code is 1 where a technique reaches less
than --bar of the ratio that its bytes allow.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it finds its siblings

from benchmarks.cache_table.rows import thrifty_rows

from thrifty import registry
from thrifty.engine.engine import Engine
from thrifty.evaluation.forcing import Tables, force
from thrifty.evaluation.measuring import speed
from thrifty.evaluation.measuring.noise import listening
from thrifty.evaluation.roofline import roofline
from thrifty.evaluation.text import held_out
from thrifty.models.loading import load


@dataclass
class Timed:
    """One recipe. nbytes: of cache at the last step. rates: tokens/s of its rounds."""

    tables: Tables
    nbytes: int = 0
    rates: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Median over rounds, tokens/s."""
        return statistics.median(self.rates)


def recipes(arguments: argparse.Namespace) -> dict[str, Tables]:
    """One row for each way to hold less that a registered technique offers, named as tables show it."""
    names = arguments.only.split(",") if arguments.only else registry.names("cache")
    rows = thrifty_rows(names, [arguments.keep])
    return {f"{row.technique} {row.budget}".strip(): row.tables(arguments.context) for row in rows}


def one_round(engine: Engine, row: Timed, tokens: list[int], steps: int) -> float:
    """Prefill and decode once; tokens/s of the decoded ones."""
    times: list[float] = []
    prompt, answer = tokens[: -steps - 1], tokens[-steps - 1 :]
    for step in force(engine, prompt, answer, row.tables, inspect=(len(answer) - 1,)):
        times.append(step.seconds)
        row.nbytes = step.evidence.nbytes if step.evidence else row.nbytes
    return 1 / statistics.fmean(times[1:])


def run(engine: Engine, rows: dict[str, Timed], tokens: list[int], arguments: argparse.Namespace) -> int:
    """Rounds over all rows until the time is over; how many were void."""
    void, began = 0, time.monotonic()
    while time.monotonic() - began < 60 * arguments.minutes or not all(row.rates for row in rows.values()):
        for row in rows.values():
            with listening() as noise:
                rate = one_round(engine, row, tokens, arguments.steps)
            if noise.void and not arguments.noisy:
                void += 1
            else:
                row.rates.append(rate)
        if void > 5 * len(rows) and not all(row.rates for row in rows.values()):
            sys.exit("the machine is too busy for any timing: end what else runs, or count all rounds with --noisy")
    return void


def compared(row: Timed, full: Timed, weights: int) -> dict[str, Any]:
    """A recipe against the full cache. share: of the speed-up that its bytes allow."""
    allowed = (weights + full.nbytes) / (weights + row.nbytes)
    faster = row.rate / full.rate
    return {
        "cache_bytes": row.nbytes,
        "tokens_per_second": round(row.rate, 1),
        "faster": round(faster, 3),
        "allowed": round(allowed, 3),
        "share": round(faster / allowed, 3),
        "rounds": len(row.rates),
    }


def main() -> int:
    """Measure, print; the exit code."""
    arguments = parsed()
    model = load(arguments.model, threads=arguments.threads)
    weights = roofline.weight_bytes_per_token(model)
    engine = Engine(model, prefix_tree=False, threads=arguments.threads)
    try:
        speed.warm_up(engine)
        tokens = held_out(model.tokenizer, arguments.context + arguments.steps + 1)
        rows = {name: Timed(tables) for name, tables in recipes(arguments).items()}
        void = run(engine, rows, tokens, arguments)
    finally:
        engine.close()
    found = {name: compared(row, rows["full"], weights) for name, row in rows.items()}
    bandwidth, source = roofline.read_bandwidth(arguments.threads)
    limit = bandwidth * 1e9 / (weights + rows["full"].nbytes)
    full = found["full"] | {"roofline": round(rows["full"].rate / limit, 3)}
    table(found)
    sys.stdout.write(
        f"the full cache reaches {full['roofline']:.0%} of the roofline ({bandwidth:.1f} GB/s by {source}); "
        f"{void} rounds were void\n"
    )
    holds = {name: one["share"] >= arguments.bar for name, one in found.items()}
    result = {"model": arguments.model, "context": arguments.context, "weight_bytes": weights, "void": void}
    sys.stdout.write(json.dumps(result | {"bandwidth": round(bandwidth, 1), "rows": found | {"full": full}}) + "\n")
    return 0 if all(holds.values()) else 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--context", type=int, default=6144, help="tokens of the prompt")
    parser.add_argument("--steps", type=int, default=128, help="decoded tokens that are timed")
    parser.add_argument("--keep", type=float, default=0.3, help="share of the prompt that evictions keep")
    parser.add_argument("--only", help="names of techniques, with commas between them")
    parser.add_argument("--minutes", type=float, default=6.0, help="no further round after that")
    parser.add_argument("--bar", type=float, default=0.7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--noisy", action="store_true", help="count disturbed rounds too")
    return parser.parse_args()


def table(found: dict[str, dict[str, Any]]) -> None:
    """For people."""
    sys.stdout.write(f"{'cache':20} {'MB':>7} {'tok/s':>7} {'faster':>7} {'allowed':>8} {'share':>6} rounds\n")
    for name, one in found.items():
        sys.stdout.write(
            f"{name:20} {one['cache_bytes'] / 1e6:7.1f} {one['tokens_per_second']:7.1f} {one['faster']:7.2f} "
            f"{one['allowed']:8.2f} {one['share']:6.0%} {one['rounds']}\n"
        )


if __name__ == "__main__":
    sys.exit(main())
