"""Is the recipe that `thrifty fit` finds the best one? Every feasible recipe at the last rung's measurement, against
the search, on three budgets.

    python benchmarks/fit_exhaustive.py --model smollm2-135m --context 4096 --state exhaustive.jsonl

The exhaustive run is made once, under the loosest budget; each search's time is compared with its time, and beside that
with the part of it that fits the same budget. All measurements lie in one state: what the search and the exhaustive run
both measure is measured once, its seconds count for both, and a killed run goes on. A table first, one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from thrifty.frontier.choice import best as choose
from thrifty.frontier.exam import DEFAULT_TASKS, ITEMS
from thrifty.frontier.fit import Fit
from thrifty.frontier.measurement import Measurement, Prediction
from thrifty.frontier.question import Question
from thrifty.frontier.rungs import last_rung
from thrifty.frontier.state import SearchState
from thrifty.models.loading import load

SHARES = {"tight": 0.35, "middle": 0.7, "loose": 1.0}  # of the candidates fit
REGRET, TIME = 0.02, 0.1  # what the search is held to


def main() -> None:
    """Run, print, and exit with 1 where the search misses a bound."""
    arguments = parsed()
    model = load(arguments.model, threads=arguments.threads)
    tasks = tuple(name for name in arguments.tasks.split(",") if name)

    def question(memory: int) -> Question:
        return Question(
            model,
            memory,
            arguments.context,
            threads=arguments.threads,
            tasks=tasks,
            items=arguments.items,
            seed=arguments.seed,
        )

    with SearchState(arguments.state, question(1).identity(), fresh=arguments.fresh) as state:
        loosest = Fit(question(2**50), state=state)
        loosest.predict()
        budgets = split(list(loosest.predictions.values()))
        whole = exhaust(question(budgets["loose"]), state).workshop.spent
        rows = [compared(name, question(memory), state, whole) for name, memory in budgets.items()]
    table(rows)
    found = {"model": arguments.model, "context": arguments.context, "items": arguments.items, "budgets": rows}
    sys.stdout.write(json.dumps(found | {"holds": all(row["holds"] for row in rows)}) + "\n")
    sys.exit(0 if all(row["holds"] for row in rows) else 1)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--state", type=Path, default=Path("fit_exhaustive.jsonl"))
    parser.add_argument("--fresh", action="store_true", help="forget what the state holds")
    parser.add_argument("--tasks", default=",".join(DEFAULT_TASKS))
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


def split(predictions: list[Prediction]) -> dict[str, int]:
    """Budgets that hold given shares of the candidates."""
    peaks = sorted(one.need.peak for one in predictions)
    return {name: peaks[max(0, round(share * len(peaks)) - 1)] for name, share in SHARES.items()}


def exhaust(question: Question, state: SearchState) -> Fit:
    """Measure every candidate that fits as the last rung does."""
    fit = exhaustive(question, state)
    for count, row in enumerate(fit.rows(), 1):
        if question.memory and sys.stderr.isatty():
            sys.stderr.write(f"\r{count} of {fit.total}: {row.candidate.label[:80]:80}")
    return fit


def exhaustive(question: Question, state: SearchState) -> Fit:
    """A search of one rung: the last."""
    prefix = question.filling_prefix()
    return Fit(question, state=state, rungs=[last_rung(prefix, question.scored)])


def compared(name: str, question: Question, state: SearchState, whole: float) -> dict[str, Any]:
    """The search under a budget, and the best of all that fits it. whole: seconds of the exhaustive run."""
    fitting = exhaust(question, state)
    search = Fit(question, state=state)
    for _ in search.rows():
        pass
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
        "best_kl": best.kl,
        "winner_kl": winner.kl,
        "regret": round(regret, 4),
        "search_seconds": round(search.workshop.spent, 1),
        "exhaustive_seconds": round(whole, 1),
        "time_ratio": round(ratio, 4),
        "fitting_seconds": round(fitting.workshop.spent, 1),
        "holds": regret <= REGRET and ratio <= TIME,
    }


def recovery(row: Measurement) -> float:
    """As the choice sees it: beyond the baseline's is luck."""
    return min(1.0, row.recovery.value) if row.recovery is not None else 0.0


def table(rows: list[dict[str, Any]]) -> None:
    """For people."""
    for row in rows:
        sys.stdout.write(
            f"{row['budget']:7} {row['memory_bytes'] / 1e6:6.1f} MB, {row['feasible']:3} feasible: "
            f"best {row['best']} ({row['best_recovery']:.3f}, KL {row['best_kl']:.4f}); "
            f"found {row['winner']} ({row['winner_recovery']:.3f}, KL {row['winner_kl']:.4f}); "
            f"regret {row['regret']:.2%}, {row['search_seconds']:.0f} s of {row['exhaustive_seconds']:.0f} s "
            f"= {row['time_ratio']:.1%} ({row['fitting_seconds']:.0f} s for those that fit): "
            f"{'holds' if row['holds'] else 'DOES NOT HOLD'}\n"
        )


if __name__ == "__main__":
    main()
