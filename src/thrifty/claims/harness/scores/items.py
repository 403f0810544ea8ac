"""Scores of a task's items: each item is run once, and items of one context are one cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from thrifty.claims.harness.scores.keys import keyed, unchecked
from thrifty.claims.harness.sharing import shared
from thrifty.claims.harness.statistics import Scores
from thrifty.evaluation.batched_runs import run_batched
from thrifty.evaluation.forcing import Tables
from thrifty.evaluation.tasks.task import Item, Record, Task

if TYPE_CHECKING:
    from thrifty.claims.harness.state import State
    from thrifty.engine.engine import Engine


def records(
    engine: Engine, state: State, task: Task, items: Sequence[Item], cache: Tables, *, insist: bool = True
) -> list[Record]:
    """What comes of each item under cache tables, from the state where it ran before; several items at a time.

    insist: refuse a run in which nothing was compressed though the tables claim it, with a MeasurementError.
    """
    tables = keyed(cache, engine.model)
    keys = [["task", task.label, task.length, item.identity, tables, *unchecked(insist)] for item in items]
    missing = [place for place, key in enumerate(keys) if not state.has(key)]
    jobs = [partial(_run, task=task, item=items[place], cache=cache, insist=insist) for place in missing]
    for number, record in run_batched(engine, jobs):
        state.once(keys[missing[number]], record.as_dict)
    return [Record.from_dict(state.once(key, _unmeasured)) for key in keys]


def _run(engine: Engine, task: Task, item: Item, cache: Tables, insist: bool) -> Record:
    if insist:
        return task.run(shared(engine), item, cache)
    return task.run(shared(engine, cache), item, None)


def _unmeasured() -> dict[str, Any]:
    raise AssertionError("every item was measured before its result is read")


def scores_of(items: Sequence[Item], ran: Sequence[Record], seed: int) -> Scores:
    """One score a turn. Turns of an item share its context, and so do items of one cluster."""
    values: list[float] = []
    clusters: list[str] = []
    for item, record in zip(items, ran, strict=True):
        turns = record.details.get("turns", [record.score])
        values += [float(value) for value in turns]
        clusters += [cluster_of(item, record, seed)] * len(turns)
    return Scores(tuple(values), tuple(clusters))


def cluster_of(item: Item, record: Record, seed: int) -> str:
    """The name of the context or template that an item shares with others; its own where it shares none."""
    shared_with = getattr(item, "cluster", None)
    if shared_with is None:
        shared_with = item.material.get("cluster", record.details.get("cluster"))
    return f"{seed}/{item.identity}" if shared_with is None else f"{seed}/{record.task}/{shared_with}"


def options_of(task: type[Task]) -> set[str]:
    """The names of a task's options."""
    return {field.name for field in dataclasses.fields(task)}
