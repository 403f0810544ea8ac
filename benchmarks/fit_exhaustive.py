"""Is the recipe that `thrifty fit` finds the best one? Every feasible recipe at the last rung's measurement, against
the search, on three budgets.

    python benchmarks/fit_exhaustive.py --model smollm2-135m --context 4096 --state exhaustive.jsonl
    python benchmarks/fit_exhaustive.py --model qwen2.5-coder-0.5b --context 2048 --prefix 1024 --scored 96 --items 6 \
        --weights shipped --minutes 60 --state other.jsonl      # a model that the rungs were not set with

The exhaustive run is made once, under the loosest budget; each search's time is compared with its time, and beside that
with the part of it that fits the same budget. All measurements lie in one state: what the search and the exhaustive run
both measure is measured once, its seconds count for both, and a run that was killed, or that --minutes ended, goes on.
A table first, one JSON line last. Exit code 1: the search misses a bound; 3: the minutes were too short.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thrifty.evaluation.quality import SCORED
from thrifty.evaluation.recovery import Interval
from thrifty.frontier.choice import best as choose
from thrifty.frontier.clock import Clock
from thrifty.frontier.exam import DEFAULT_TASKS, ITEMS
from thrifty.frontier.fit import Fit
from thrifty.frontier.measurement import Measurement, Prediction
from thrifty.frontier.question import Question
from thrifty.frontier.rungs import last_rung
from thrifty.frontier.space import space
from thrifty.frontier.state import SearchState
from thrifty.models.loading import load

SHARES = {"tight": 0.35, "middle": 0.7, "loose": 1.0}  # of the candidates fit
REGRET, TIME = 0.02, 0.1  # what the search is held to
UNFINISHED = 3

Asked = Callable[[int], Question]


@dataclass
class Unfinished(Exception):
    """The minutes ended before all was measured. missing: measurements."""

    missing: int


def main() -> None:
    """Run, print, and exit with 1 where the search misses a bound."""
    arguments = parsed()
    clock = Clock(arguments.minutes)
    model = load(arguments.model, threads=arguments.threads)
    tasks = tuple(name for name in arguments.tasks.split(",") if name)

    def question(memory: int) -> Question:
        asked = Question(
            model,
            memory,
            arguments.context,
            prefix=arguments.prefix,
            scored=arguments.scored,
            threads=arguments.threads,
            tasks=tasks,
            items=arguments.items,
            seed=arguments.seed,
        )
        return asked if arguments.weights == "all" else shipped(asked)

    with SearchState(arguments.state, question(1).identity(), fresh=arguments.fresh) as state:
        try:
            rows = measured(question, state, clock)
        except Unfinished as left:
            sys.stderr.write(
                f"{arguments.minutes:g} minutes were too short: {left.missing} measurements are missing. The same "
                "command goes on from there.\n"
            )
            sys.exit(UNFINISHED)
    table(rows)
    result = {"model": arguments.model, "context": arguments.context, "items": arguments.items, "budgets": rows}
    sys.stdout.write(json.dumps(result | {"holds": all(row["holds"] for row in rows)}) + "\n")
    sys.exit(0 if all(row["holds"] for row in rows) else 1)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--prefix", type=int, default=None, help="tokens that are compressed")
    parser.add_argument("--scored", type=int, default=None, help="tokens that are scored")
    parser.add_argument("--weights", choices=["all", "shipped"], default="all", help="shipped: caches alone")
    parser.add_argument("--minutes", type=float, default=None, help="end by then; the same command goes on")
    parser.add_argument("--state", type=Path, default=Path("fit_exhaustive.jsonl"))
    parser.add_argument("--fresh", action="store_true", help="forget what the state holds")
    parser.add_argument("--tasks", default=",".join(DEFAULT_TASKS))
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


def shipped(question: Question) -> Question:
    """The same question over the recipes that leave the weights as they are."""
    every = space(question.filling_prefix())
    return replace(question, candidates=[candidate for candidate in every if not candidate.recipe.weights])


def measured(question: Asked, state: SearchState, clock: Clock) -> list[dict[str, Any]]:
    """A row a budget. Raises Unfinished."""
    loosest = Fit(question(2**50), state=state)
    loosest.predict()
    budgets = split(list(loosest.predictions.values()))
    whole = exhaust(question(budgets["loose"]), state, clock).workshop.spent
    return [compared(name, question(memory), state, whole, clock) for name, memory in budgets.items()]


def split(predictions: list[Prediction]) -> dict[str, int]:
    """Budgets that hold given shares of the candidates."""
    peaks = sorted(prediction.need.peak for prediction in predictions)
    return {name: peaks[max(0, round(share * len(peaks)) - 1)] for name, share in SHARES.items()}


def exhaust(question: Question, state: SearchState, clock: Clock) -> Fit:
    """Measure every candidate that fits as the last rung does."""
    return run(exhaustive(question, state), clock)


def exhaustive(question: Question, state: SearchState) -> Fit:
    """A search of one rung: the last."""
    prefix = question.filling_prefix()
    last = last_rung(prefix, question.scored or SCORED)
    return Fit(question, state=state, rungs=[last])


def run(fit: Fit, clock: Clock) -> Fit:
    """Run a search to its end. Raises Unfinished where the minutes end first."""
    for count, row in enumerate(fit.rows(), 1):
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{count} of {fit.total}: {row.candidate.label[:80]:80}")
        if clock.late and count < fit.total:
            raise Unfinished(fit.total - count)
    return fit


def compared(name: str, question: Question, state: SearchState, whole: float, clock: Clock) -> dict[str, Any]:
    """The search under a budget, and the best of all that fits it. whole: seconds of the exhaustive run."""
    fitting = exhaust(question, state, clock)
    search = run(Fit(question, state=state), clock)
    feasible = [row for row in fitting.measured if row.eligible]
    best, winner = choose(feasible), search.best
    assert best is not None and winner is not None
    highest = max(recovery(row) for row in feasible)
    regret = 1 - recovery(winner) / highest if highest else 0.0
    ratio = search.workshop.spent / whole
    return {
        "budget": name,
        "memory_bytes": question.memory,
        "feasible": len(feasible),
        "best": best.candidate.label,
        "best_recovery": round(recovery(best), 4),
        "highest_recovery": round(highest, 4),
        "winner": winner.candidate.label,
        "winner_recovery": round(recovery(winner), 4),
        "winner_interval": told(winner.recovery),
        "best_kl": best.kl,
        "winner_kl": winner.kl,
        "regret": round(regret, 4),
        "winner_minus_best": told(search.exam.difference(winner.candidate, best.candidate)),
        "second_rung": seated(search.measured, feasible),
        "search_seconds": round(search.workshop.spent, 1),
        "exhaustive_seconds": round(whole, 1),
        "time_ratio": round(ratio, 4),
        "fitting_seconds": round(fitting.workshop.spent, 1),
        "holds": regret <= REGRET and ratio <= TIME,
    }


def seated(searched: Sequence[Measurement], feasible: Sequence[Measurement]) -> dict[str, Any]:
    """What the choice of rungs let through: of the recipes within the bound those that the second rung saw."""
    highest = max(recovery(row) for row in feasible)
    good = {row.candidate.key for row in feasible if recovery(row) >= (1 - REGRET) * highest}
    seen = {row.candidate.key for row in searched if row.rung > 0}
    return {"good": len(good), "of_them_seen": len(good & seen), "seen": len(seen)}


def told(interval: Interval | None) -> list[float] | None:
    """An interval's value and its 95 % ends."""
    return None if interval is None else [round(end, 4) for end in (interval.value, interval.low, interval.high)]


def recovery(row: Measurement) -> float:
    """As the choice sees it: beyond the baseline's is luck."""
    return min(1.0, row.recovery.value) if row.recovery is not None else 0.0


def table(rows: list[dict[str, Any]]) -> None:
    """For people."""
    for row in rows:
        _, low, high = row["winner_interval"] or (math.nan,) * 3
        apart, least, most = row["winner_minus_best"] or (math.nan,) * 3
        rung = row["second_rung"]
        sys.stdout.write(
            f"{row['budget']:7} {row['memory_bytes'] / 1e6:6.1f} MB, {row['feasible']:3} feasible: "
            f"best {row['best']} ({row['best_recovery']:.3f}, KL {row['best_kl']:.4f}); "
            f"found {row['winner']} ({row['winner_recovery']:.3f}, 95 % {low:.3f} to {high:.3f}, "
            f"KL {row['winner_kl']:.4f}); regret {row['regret']:.2%} (its score minus the best's on the same "
            f"questions {apart:+.3f}, 95 % {least:+.3f} to {most:+.3f}); {rung['of_them_seen']} of {rung['good']} "
            f"recipes within {REGRET:.0%} were among the {rung['seen']} of the second rung; "
            f"{row['search_seconds']:.0f} s of {row['exhaustive_seconds']:.0f} s "
            f"= {row['time_ratio']:.1%} ({row['fitting_seconds']:.0f} s for those that fit): "
            f"{'holds' if row['holds'] else 'DOES NOT HOLD'}\n"
        )


if __name__ == "__main__":
    main()
