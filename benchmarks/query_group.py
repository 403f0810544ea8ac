"""How the scores of a KV head's query heads are best reduced: recall and divergence by `group`.

    python benchmarks/query_group.py smollm2-135m --items 50 --minutes 10

Recall of one key and KL on prose, by technique, reduction and kept share, with items of the tuning half.
Items are paired: each reduction's difference from the first one stands beside it, with a 95 % interval. A table, then
one JSON line. (The sum keeps what the mean keeps: it is the mean times the group.)
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.engine.engine import Engine
from thrifty.evaluation import tasks
from thrifty.evaluation.paired import Clustered, mean_interval
from thrifty.evaluation.scoring import score
from thrifty.evaluation.tasks.kl import Divergence
from thrifty.evaluation.tasks.task import Item, Task
from thrifty.models.loading import load

REDUCTIONS: Mapping[str, Sequence[str]] = {
    "snapkv": ("mean", "max"),
    "ada-kv": ("mean", "max"),
    "pyramidkv": ("mean", "max"),
    "minikv": ("sum", "max"),
}
SEED = 0

Tables = list[dict[str, Any]]
Values = npt.NDArray[np.float64]


def main() -> None:
    """Measure and print."""
    arguments = parse()
    model = load(arguments.model)
    asked = {name: tasks.load(name, length=arguments.length, half="tuning") for name in ("recall", "kl")}
    items = {name: task.items(model.require_tokenizer(), arguments.items, SEED) for name, task in asked.items()}
    deadline = time.monotonic() + 60 * arguments.minutes
    rows: list[dict[str, Any]] = []
    with closing(Engine(model, prefix_tree=False)) as engine:
        for technique, keep in itertools.product(REDUCTIONS, arguments.keep):
            if time.monotonic() > deadline:
                sys.stderr.write(f"stopped before {technique}, {keep}: --minutes {arguments.minutes} are over\n")
                break
            rows += compared(engine, asked, items, technique, REDUCTIONS[technique], keep)
    print(f"{'technique, group, kept':28} {'recall':>8} {'difference':>22} {'-KL':>9} {'difference':>26}")
    for row in rows:
        name = f"{row['technique']} {row['group']} {row['keep']}"
        print(f"{name:28} {row['recall']:8.2f} {told(row, 'recall', 2):>22} {row['kl']:9.4f} {told(row, 'kl', 4):>26}")
    print(json.dumps({"model": arguments.model, "length": arguments.length, "seed": SEED, "rows": rows}))


def compared(
    engine: Engine,
    asked: Mapping[str, Task],
    items: Mapping[str, Sequence[Item]],
    technique: str,
    groups: Sequence[str],
    keep: float,
) -> list[dict[str, Any]]:
    """A row for each reduction, with the differences from the first one."""
    rows: list[dict[str, Any]] = []
    first: dict[str, Values] = {}
    for group in groups:
        row: dict[str, Any] = {"technique": technique, "group": group, "keep": keep}
        for name, task in asked.items():
            values = measured(engine, task, items[name], table(technique, group, keep))
            row[name] = float(values.mean())
            if name in first:
                row[f"{name}_difference"] = interval(values - first[name], name == "recall")
            first.setdefault(name, values)
        rows.append(row)
    return rows


def measured(engine: Engine, task: Task, items: Sequence[Item], tables: Tables) -> Values:
    """A number for each item, the larger the better: the KL's negative, or the score."""
    if isinstance(task, Divergence):
        return np.array([-task.compare(engine, engine, item, tables)[1].details["kl"] for item in items])
    return np.array([record.score for record in score(engine, task, items, tables)])


def table(technique: str, group: str, keep: float) -> Tables:
    """The recipe that keeps a share of the prompt."""
    budget = {"heavy": keep / 2, "recent": keep / 2} if technique == "minikv" else {"keep": keep}
    return [{"technique": technique, "group": group, **budget}]


def interval(differences: Values, bounded: bool) -> list[float]:
    """Mean of paired differences, and the ends of its 95 % interval. bounded: of scores between 0 and 1."""
    own = mean_interval(Clustered(tuple(differences.tolist()), tuple(range(len(differences))), bounded))
    return [own.value, own.low, own.high]


def told(row: Mapping[str, Any], name: str, digits: int) -> str:
    """A difference with its interval, empty for the first reduction."""
    found = row.get(f"{name}_difference")
    if found is None:
        return ""
    mean, low, high = (f"{value:+.{digits}f}" for value in found)
    return f"{mean} [{low}, {high}]"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25], help="shares of the prompt")
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--length", type=int, default=512, help="tokens of a context")
    parser.add_argument("--minutes", type=float, default=20.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
