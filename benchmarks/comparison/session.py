"""Asking workers for timings: which live, what is recorded, what happens when one fails."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.comparison.figures import Sample
from benchmarks.comparison.processes import WorkerError, WorkerProcess
from benchmarks.comparison.state import State
from benchmarks.comparison.variants import Cell, Variant

SETTLE = 0.2  # seconds after the others were stopped
PATIENCE = 300.0  # seconds for one answer; the slowest prefill takes one or two minutes
WARM_UP = {"context": 64, "batch": 1, "steps": 4, "seed": 0, "reuse": False}  # not counted
Note = Callable[[str], None]


class Session:
    """Workers by variant, one awake at a time. What fails is noted and its worker ended; the rest goes on."""

    def __init__(
        self, state: State, files: Mapping[str, Path], *, threads: int, steps: int, deadline: float, note: Note
    ) -> None:
        """files: GGUF files by kind. steps: decoded tokens of a sample. deadline: on time.perf_counter()'s clock."""
        self.state = state
        self.note = note
        self._files, self._threads, self._steps, self._deadline = files, threads, steps, deadline
        self._workers: dict[str, WorkerProcess] = {}
        self._chance = random.Random()

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - time.perf_counter()

    @property
    def _patience(self) -> float:
        """Seconds to wait for one answer."""
        return min(max(1.0, self.left), PATIENCE)

    def measure(self, variant: Variant, cell: Cell, number: int, *, reuse: bool = False) -> Sample | None:
        """One sample of a round; None where the variant failed, now or earlier."""
        seed = self._chance.getrandbits(32)
        request = {"context": cell.context, "batch": cell.batch, "steps": self._steps, "seed": seed, "reuse": reuse}
        found = self._ask(variant, cell, op="measure", **request)
        if found is None:
            return None
        prefill = found["prefill_tokens"] / found["prefill_s"] if found["prefill_s"] else None
        decode = found["decode_tokens"] / found["decode_s"]
        return Sample(variant.key, cell, number, decode, prefill, found["peak_rss"], found["bytes_per_token"])

    def divergence(self, variant: Variant, reference: Path) -> None:
        """Record the variant's KL divergence from the reference, by a worker of its own."""
        self.release(variant)
        try:
            worker = self._worker(variant)
            self.state.kl[variant.key] = float(worker.ask(self._patience, op="kl", reference=str(reference))["kl"])
        except WorkerError as error:
            self.note(f"{variant.key}: no KL divergence: {error}")
            self.state.errors.setdefault(f"kl of {variant.key}", str(error))
        self.release(variant)

    def release(self, variant: Variant) -> None:
        """End the variant's worker, if it has one."""
        if worker := self._workers.pop(variant.key, None):
            worker.close()

    def _ask(self, variant: Variant, cell: Cell, **request: Any) -> dict[str, Any] | None:
        """A failure to start rules the variant out, a failure to measure only this cell of it."""
        place = variant.key
        if {place, f"{place} @{cell}"} & self.state.errors.keys():
            return None
        try:
            worker = self._worker(variant)
            place = f"{place} @{cell}"
            self._awake(variant)
            return worker.ask(self._patience, **request)
        except WorkerError as error:
            self.release(variant)
            if self.left > 0:  # otherwise it was only the end of the run
                self.state.errors[place] = str(error)
            self.note(f"{place}: {error}")
            return None

    def _awake(self, variant: Variant) -> None:
        for key, worker in self._workers.items():
            if key != variant.key:
                worker.sleep()
        time.sleep(SETTLE)

    def _worker(self, variant: Variant) -> WorkerProcess:
        """The variant's worker, started and loaded where there is none; its start is timed to the first token."""
        if variant.key in self._workers:
            return self._workers[variant.key]
        self._awake(variant)
        worker = self._workers[variant.key] = WorkerProcess(self._threads)
        specification = {
            "path": str(self._files[variant.file]),
            "threads": self._threads,
            "options": variant.options,
        }
        worker.ask(self._patience, op="load", engine=variant.engine, specification=specification)
        self.state.first.setdefault(variant.key, []).append(time.perf_counter() - worker.started)
        worker.ask(self._patience, op="measure", **WARM_UP)
        return worker

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers.values():
            worker.close()
