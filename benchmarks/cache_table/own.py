"""Thrifty's rows, measured in this process."""

from __future__ import annotations

import statistics
from functools import partial

from benchmarks.cache_table.questions import SPEED, Figures, Questions
from benchmarks.cache_table.rows import Row, Table

from thrifty import registry
from thrifty.engine.engine import Engine
from thrifty.evaluation.batched_runs import run_batched
from thrifty.evaluation.heads.probe import score_once
from thrifty.evaluation.measuring import memory, speed
from thrifty.evaluation.tasks.kl import Divergence
from thrifty.models.model import Model


class Own:
    """One engine without a budget or a prefix tree."""

    def __init__(self, model: Model, questions: Questions, threads: int | None) -> None:
        self.questions = questions
        self.engine = Engine(model, prefix_tree=False, threads=threads)

    def measure(self, row: Row, part: str) -> Figures:
        """The figures of one part of a row. Raises what the engine raises, or MeasurementError."""
        self._score_heads(row)
        if part == SPEED:
            return self._speed(row.tables(self.questions.context))
        task, items = self.questions.tasks[part], self.questions.items[part]
        tables = row.tables(task.length)
        if isinstance(task, Divergence):
            records = [task.compare(self.engine, self.engine, item, tables)[1] for item in items]
            return {name: statistics.fmean(one.details[name] for one in records) for name in ("kl", "top1")}
        asked = [partial(task.run, item=item, cache=tables) for item in items]
        return {"score": statistics.fmean(record.score for _, record in run_batched(self.engine, asked))}

    def close(self) -> None:
        """Give everything back."""
        self.engine.close()

    def _score_heads(self, row: Row) -> None:
        """Measure and save the scores of heads that a row needs and the model has not."""
        for table in row.tables(self.questions.context or 1):
            kind = getattr(registry.build("cache", table), "kind", None)
            if kind is not None:
                score_once(self.engine, kind)

    def _speed(self, tables: list[Table]) -> Figures:
        """kept: bytes of the sequence's segments at the end. peak: the ledger's while it runs, above what is held
        without a request. process: by how much the process grew at its highest.
        """
        speed.warm_up(self.engine)
        before = self.engine.usage().steady
        self.engine.reset_peak()
        with memory.watch() as watched:
            found = speed.measure(self.engine, self.questions.context, tables, steps=self.questions.steps)
        return {
            "kept": found.cache_bytes,
            "decode": found.decode_rate,
            "prefill": found.prefill_rate,
            "peak": self.engine.usage().peak - before,
            "process": watched.peak - watched.before,
        }
