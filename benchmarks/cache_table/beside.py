"""kvpress's rows: questions go to its process as token ids, answers are graded here by the same tasks."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.cache_table.questions import SPEED, Figures, Questions
from benchmarks.cache_table.rows import Row
from benchmarks.comparison.processes import WorkerProcess

from thrifty.evaluation.asking import reply
from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks.kl import Divergence
from thrifty.evaluation.tasks.task import Item
from thrifty.evaluation.text import held_out
from thrifty.models.model import Model

PATIENCE = 1800.0  # seconds for one answer of the process


class Beside:
    """The process of one environment. Raises WorkerError where it cannot be started or loads nothing."""

    def __init__(self, python: Path, folder: Path, model: Model, questions: Questions, threads: int) -> None:
        self.questions = questions
        self.tokenizer = model.tokenizer
        self.process = WorkerProcess(threads, (str(python), "-m", "benchmarks.cache_table.peer"))
        try:
            self.process.ask(PATIENCE, op="load", folder=str(folder), threads=threads, ends=self.tokenizer.eos_ids)
        except BaseException:
            self.process.close()
            raise

    def measure(self, row: Row, part: str) -> Figures:
        """The figures of one part of a row. Raises WorkerError with what kvpress says."""
        if part == SPEED:
            return self._speed(row)
        task, items = self.questions.tasks[part], self.questions.items[part]
        if isinstance(task, Divergence):
            found = [self._divergence(row, item) for item in items]
            return {name: statistics.fmean(one[name] for one in found) for name in ("kl", "top1")}
        if not isinstance(task, Answering):
            raise TypeError(f"the process answers in words; '{part}' asks for something else")
        return {"score": statistics.fmean(self._score(row, task, item) for item in items)}

    def sleep(self) -> None:
        """Leave the processor to others until the next question."""
        self.process.sleep()

    def close(self) -> None:
        """End the process."""
        self.process.close()

    def _score(self, row: Row, task: Answering, item: Item) -> float:
        fed = task.fed(item)
        if fed is None:
            raise TypeError(f"'{task.label}' goes on from the model's own answers, which the process does not do")
        request = {"press": row.press, "prompt": item.prompt, "fed": fed, "limit": task.limit}
        answers = self.process.ask(PATIENCE, op="answer", **request)["answers"]
        texts = [reply(self.tokenizer, one, self.tokenizer.eos_ids, task.stop, True).text for one in answers]
        return statistics.fmean(task.grade(item, turn, text) for turn, text in zip(item.turns, texts, strict=True))

    def _divergence(self, row: Row, item: Item) -> Figures:
        request = {"press": row.press, "prompt": item.prompt, "answer": item.turns[0].tokens}
        return self.process.ask(PATIENCE, op="diverge", **request)

    def _speed(self, row: Row) -> Figures:
        context, steps = self.questions.context, self.questions.steps
        tokens = held_out(self.tokenizer, context + steps)
        request = {"press": row.press, "prompt": tokens[:context], "answer": tokens[context:]}
        return self.process.ask(PATIENCE, op="speed", **request)
