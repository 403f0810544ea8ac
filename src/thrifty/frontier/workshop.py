"""Where candidates are predicted and measured: weights are loaded once for all that share them, and what the state
already holds is not done again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from thrifty.api import open_engine, open_model
from thrifty.errors import StorageError, ThriftyError
from thrifty.evaluation import quality
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.measuring import memory
from thrifty.evaluation.measuring.noise import DISTURBED, listening
from thrifty.evaluation.measuring.speed import warm_up
from thrifty.evaluation.roofline import sizes
from thrifty.evaluation.roofline.machine import Machine, this_machine
from thrifty.frontier import heads, pace
from thrifty.frontier.candidates import Candidate, grouped
from thrifty.frontier.clock import Clock, OutOfTime
from thrifty.frontier.exam import Exam
from thrifty.frontier.measurement import Prediction
from thrifty.frontier.predict import as_stored, longest_context, prediction, unpredictable
from thrifty.frontier.reading import needed
from thrifty.frontier.rungs import Rung
from thrifty.frontier.space import RTN_4, shortened
from thrifty.frontier.state import SearchState
from thrifty.frontier.timed_engine import TimedEngine
from thrifty.recipe import Recipe

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.models.model import Model

Values = dict[str, Any]
PATIENCE = 3  # disturbed runs in a row whose repetition was disturbed as well; after them none is repeated
REPEATED = 0.03  # of the time that is left: a run that took more is not repeated for a quieter one


class Workshop:
    """Candidates of one family: all are compared with `base`, the uncompressed model of their grid.

    spent: seconds that the measurements asked for took, those included that the state held.
    """

    def __init__(
        self,
        model: Model,
        base: Candidate,
        state: SearchState,
        exam: Exam,
        full_prefix: int,
        clock: Clock,
        threads: int | None = None,
        native: bool | None = None,
    ) -> None:
        self.model = model
        self.base = base
        self.state = state
        self.exam = exam
        self.full_prefix = full_prefix
        self.spent = 0.0
        self._counted: dict[str, float] = {}
        self._clock = clock
        self._threads, self._native = threads, native
        self._baseline: tuple[str, quality.Baseline] | None = None
        self._in_vain = 0

    def machine(self) -> Machine:
        """This machine as the state knows it, else measured: a search that goes on predicts as it did."""
        held = self.state.find("machine", "")
        if held is None:
            held = dataclasses.asdict(this_machine(self._threads, sparing=True))
            self.state.add("machine", "", held)
        return Machine(**held)

    def predictions(
        self, candidates: Sequence[Candidate], context: int, batch: int
    ) -> Iterator[tuple[Candidate, Prediction | str]]:
        """Bytes and time of every candidate, or the reason why it cannot be made; no weights are made, nothing is run.

        Raises what the uncompressed model raises.
        """
        machine = self.machine()
        for group in grouped(candidates):
            failed = {candidate.key: reason for candidate in group if (reason := unpredictable(candidate.recipe))}
            able = [candidate for candidate in group if candidate.key not in failed]
            missing = [candidate for candidate in able if self.state.find("prediction", candidate.key) is None]
            failed |= self._predict(missing, context, batch, machine) if missing else {}
            for candidate in group:
                reason, held = failed.get(candidate.key), self.state.find("prediction", candidate.key)
                yield candidate, Prediction.from_dict(candidate, held) if reason is None else reason

    def _predict(self, group: Sequence[Candidate], context: int, batch: int, machine: Machine) -> dict[str, str]:
        """Keep predictions of candidates that share weights; why not, by key, of those that cannot be made."""
        failed: dict[str, str] = {}
        try:
            techniques = group[0].recipe.techniques("weights")
            for technique in techniques:
                technique.check(self.model)
            shipped = sizes.of_model(self.model)
            stored = as_stored(shipped, techniques)
        except Exception as error:
            return dict.fromkeys((candidate.key for candidate in group), _reason(error))
        # The cache's format and the workspace are the shipped model's, unless plain weights become packed ones.
        with self._engine(self.base if stored.plain == shipped.plain else group[0]) as engine:
            for candidate in group:
                try:
                    predicted = prediction(engine, stored, candidate, context, batch, machine)
                except Exception as error:
                    if candidate.key == self.base.key:
                        raise
                    failed[candidate.key] = _reason(error)
                else:
                    self.state.add("prediction", candidate.key, predicted.as_dict())
        return failed

    def forecast(self, candidates: Sequence[Candidate]) -> pace.Forecast:
        """How long the measurements of candidates take, by a short run of the uncompressed model, or what the state
        holds of an earlier one. Raises OutOfTime where the time ends meanwhile.
        """
        held = self.state.find("pace", "")
        if held is None:
            rounds = any(candidate.recipe.weights for candidate in candidates)
            seconds = pace.rounding_seconds(self.model, Recipe(weights=[RTN_4]).techniques("weights") if rounds else [])
            with self._engine(self.base) as engine:
                held = pace.measure(engine, seconds).as_dict()
            self.state.add("pace", "", held)
        known = {candidate.key: self.state.find("prediction", candidate.key) for candidate in candidates}
        reads = {key: float(values.get("prefills", 1.0)) for key, values in known.items() if values is not None}
        unscored = frozenset(heads.unscored(self.model, self.state, needed(candidates)))
        return pace.Forecast(
            pace.SearchPace.from_dict(held), sizes.of_model(self.model), self.machine(), reads, unscored
        )

    def score_heads(self, kinds: Sequence[str]) -> dict[str, str]:
        """Measure the scores of the model's heads that nobody measured yet; by kind why there are none, where the model
        cannot be scored. Raises OutOfTime where the time ends meanwhile.
        """
        missing = heads.unscored(self.model, self.state, kinds)
        if missing:
            with self._engine(self.base) as engine:
                for kind in missing:
                    heads.score(engine, self.state, kind, self._clock.check)
        for kind in kinds:
            self._count(f"heads {kind}", heads.seconds(self.state, kind))
        return heads.without_scores(self.model, self.state, kinds)

    def longest(self, predicted: Prediction, context: int, budget: int, batch: int) -> int:
        """See `longest_context`."""
        with self._engine(self.base) as engine:
            return longest_context(engine, predicted, context, budget, batch)

    def measure(
        self, group: Sequence[Candidate], rung: Rung, go_on: Callable[[], bool]
    ) -> Iterator[tuple[Candidate, Values]]:
        """What each of a group that shares weights measures at a rung, as JSON-ready values, or {"error": reason}.

        go_on: asked before weights are made and before each; False ends the group. Raises OutOfTime wherever the
        search's time ends, and what the uncompressed model raises.
        """
        todo = [candidate for candidate in group if self._missing(candidate, rung)]
        if not todo:
            for candidate in group:
                yield candidate, self._held(candidate, rung)
            return
        if not go_on():
            return
        self._prepare(rung, needed=any(candidate.key != self.base.key for candidate in todo))
        with ExitStack() as opened:
            try:
                engine = opened.enter_context(self._engine(group[0]))
                warm_up(engine)
            except Exception as error:
                if group[0].weights_key == self.base.weights_key:
                    raise
                yield from ((candidate, {"error": _reason(error)}) for candidate in group)
                return
            for candidate in group:
                if not go_on():
                    return
                yield candidate, self._values(engine, candidate, rung)

    def _values(self, engine: Engine, candidate: Candidate, rung: Rung) -> Values:
        """Measured where the state does not hold it. What a candidate raises is its own reason, which is not kept: the
        next search tries it again.
        """
        try:
            if self._missing(candidate, rung):
                self._run(engine, candidate, rung)
        except Exception as error:
            if candidate.key == self.base.key:
                raise
            return {"error": _reason(error)}
        return self._held(candidate, rung)

    def close(self) -> None:
        """Give the baseline's file back."""
        if self._baseline is not None:
            self._baseline[1].close()
            self._baseline = None

    def loading_seconds(self, candidate: Candidate) -> float:
        """What making the candidate's weights took."""
        return float(self.state.find("loading", candidate.weights_key) or 0.0)

    def _missing(self, candidate: Candidate, rung: Rung) -> bool:
        held = self.state.find("run", _key(candidate, rung))
        if held is None:
            return True
        return rung.tasks and "error" not in held and not self.exam.complete(candidate, rung.items)

    def _held(self, candidate: Candidate, rung: Rung) -> Values:
        values: Values = self.state.find("run", _key(candidate, rung))
        self._count(_key(candidate, rung), values["seconds"])
        if rung.tasks:
            self._count(candidate.key, self.exam.seconds(candidate, rung.items))
        return values

    def _count(self, key: str, seconds: float) -> None:
        """Add to what was spent what a thing took beyond what was counted of it before."""
        self.spent += max(0.0, seconds - self._counted.get(key, 0.0))
        self._counted[key] = max(seconds, self._counted.get(key, 0.0))

    def _prepare(self, rung: Rung, needed: bool) -> None:
        """Have the baseline's predictions on the rung's passage, which no state holds."""
        if not needed or (self._baseline is not None and self._baseline[0] == rung.key):
            return
        with self._engine(self.base) as engine:
            warm_up(engine)
            self._run(engine, self.base, rung)

    def _run(self, engine: Engine, candidate: Candidate, rung: Rung) -> None:
        key = _key(candidate, rung)
        if candidate.key == self.base.key:
            if self._baseline is None or self._baseline[0] != rung.key:
                values = self._measured(engine, candidate, rung)
                if self.state.find("run", key) is None:
                    self.state.add("run", key, values)
        elif self.state.find("run", key) is None:
            self.state.add("run", key, self._measured(engine, candidate, rung))
        if not rung.tasks or "error" in self.state.find("run", key):
            return
        try:
            self.exam.take(engine, candidate, self.full_prefix, rung.items)
        except MeasurementError as error:
            self.state.add("run", key, {"error": str(error), "seconds": self.state.find("run", key)["seconds"]})

    def _measured(self, engine: Engine, candidate: Candidate, rung: Rung) -> Values:
        """What a run gives; where other work disturbed it, the quieter of two, as long as a second ever helps."""
        values = self._run_once(engine, candidate, rung)
        if values.get("others", 0.0) <= DISTURBED or self._in_vain >= PATIENCE:
            return values
        if values["seconds"] > REPEATED * self._clock.left:
            return values
        again = self._run_once(engine, candidate, rung)
        if "error" in again:
            return values
        self._in_vain = 0 if again["others"] <= DISTURBED else self._in_vain + 1
        seconds = values["seconds"] + again["seconds"]
        return min((values, again), key=lambda run: run["others"]) | {"seconds": seconds}

    def _run_once(self, engine: Engine, candidate: Candidate, rung: Rung) -> Values:
        begin = time.perf_counter()
        try:
            with memory.watch() if rung.items is None else nullcontext(memory.ProcessMemory()) as process:
                engine.reset_peak()
                with listening() as noise:
                    run = self._one_run(engine, candidate, rung)
        except MeasurementError as error:
            return {"error": str(error), "seconds": time.perf_counter() - begin}
        return {
            "prompt": rung.prefix,
            "ledger_peak": engine.usage().peak,
            "ledger_steady": run.steady,
            "process_peak": process.peak or memory.resident(),  # watching takes longer than a short run
            "prefill_rate": run.prefill_rate,
            "decode_rate": run.decode_rate,
            "others": noise.others,
            "cache_bytes": run.cache_bytes,
            "quality": run.quality.as_dict() if run.quality else None,
            "seconds": time.perf_counter() - begin,
        }

    def _one_run(self, engine: Engine, candidate: Candidate, rung: Rung) -> quality.PassageRun:
        if candidate.key == self.base.key:
            self.close()
            config = engine.model.config
            passage = quality.passage(
                engine.model.require_tokenizer(), config.context_length, rung.prefix, rung.scored, timed=rung.timed
            )
            baseline = quality.Baseline.measure(engine, passage)
            self._baseline = rung.key, baseline
            assert baseline.run is not None
            return baseline.run
        assert self._baseline is not None, "the baseline is measured first"
        short = shortened(candidate, rung.prefix / self.full_prefix)
        return quality.measure(engine, self._baseline[1], short.recipe.cache, compresses=candidate.compresses_cache)

    @contextmanager
    def _engine(self, candidate: Candidate) -> Iterator[Engine]:
        memory.release()  # what was made for the one before
        begin = time.perf_counter()
        weights = Recipe(weights=candidate.recipe.weights)
        engine = open_engine(
            open_model(self.model, weights, before=self._clock.check, errors=False),
            make=partial(TimedEngine, self._clock),
            threads=self._threads,
            native=self._native,
            prefix_tree=False,
        )
        if self.state.find("loading", candidate.weights_key) is None:
            self.state.add("loading", candidate.weights_key, time.perf_counter() - begin)
        try:
            yield engine
        finally:
            engine.close()


def _reason(error: Exception) -> str:
    """Why a candidate cannot be made. Raises the error where it is the search's own and not the candidate's."""
    if isinstance(error, OutOfTime | StorageError):
        raise error
    return str(error) if isinstance(error, ThriftyError) else f"{type(error).__name__}: {error}"


def _key(candidate: Candidate, rung: Rung) -> str:
    return f"{rung.key}|{candidate.key}"
