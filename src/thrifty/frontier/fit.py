"""`thrifty fit`: predict every recipe, halve those that fit on measured quality, and let the caller watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from thrifty.arrays import BFLOAT16
from thrifty.evaluation import quality
from thrifty.frontier import choice, plan
from thrifty.frontier.candidates import BASE, OFF_GRID_BASE, Candidate, grouped
from thrifty.frontier.clock import Clock, OutOfTime
from thrifty.frontier.exam import Exam
from thrifty.frontier.gentleness import deciding
from thrifty.frontier.measurement import Measurement, Prediction, measured
from thrifty.frontier.needless import Bounds
from thrifty.frontier.outside import steps_up
from thrifty.frontier.question import Question
from thrifty.frontier.reading import needed
from thrifty.frontier.rungs import Rung, survivors
from thrifty.frontier.space import split
from thrifty.frontier.state import SearchState
from thrifty.frontier.workshop import Workshop
from thrifty.weights.offgrid import offgrid

SHARES = (0.45, 0.65, 1.0)  # of the time, by when a rung must be over
SLACK = 1.15  # a latency measured on a short run may be so much too long


class Fit:
    """The search. Iterate `rows` to run it; stop whenever you like, `best` answers from the rows so far.

    predictions: of every candidate, by key. measured: the furthest row of each that ran. skipped: candidates that
    cannot be made or measured, each with the reason. unreached: how many measurements the time did not reach.
    finished: whether the search ran to its end, or to that of its time; False where it was stopped.
    """

    def __init__(
        self,
        question: Question,
        extra: Sequence[Candidate] = (),
        *,
        state: SearchState | None = None,
        rungs: Sequence[Rung] | None = None,
    ) -> None:
        """extra: candidates beside those of the question, measured to the end whether they fit or not. state: what
        earlier searches measured. rungs: None for the usual ladder. Raises PromptError where the model's context does
        not hold what is to be compressed and scored, RecipeError for an unknown task.
        """
        self.question = question
        self.base = BASE
        self.prefix = question.filling_prefix()
        self.rungs = list(plan.LEVELS[0].ladder(question) if rungs is None else rungs)
        self._planned = rungs is None  # whether the rungs are for the plan to choose
        self.plan: plan.Plan | None = None
        last = self.rungs[-1]
        tokenizer, limit = question.model.require_tokenizer(), question.model.config.context_length
        quality.passage(tokenizer, limit, last.prefix, last.scored, timed=last.timed)
        self.state = SearchState(None, {}) if state is None else state
        self.exam = self._exam_of(plan.LEVELS[0])
        self.pinned = {candidate.key for candidate in extra}
        self.candidates, self.off_grid = split([*question.asked(self.prefix), *extra])  # of equal ones the user's own
        self.predictions: dict[str, Prediction] = {}
        every = question.candidates is not None or len(self.rungs) < 2
        self.bounds = Bounds(question, self.predictions, None if every else self.pinned)
        self.skipped: list[tuple[Candidate, str]] = []
        self.unreached = 0
        self.finished = False
        self.total = len(self.candidates) + len(self.off_grid)
        self._rows: dict[tuple[str, int], Measurement] = {}
        self._tried: set[tuple[str, int]] = set()
        self.clock = Clock(question.minutes)
        self.workshop = self._workshop(question, BASE)

    @property
    def measured(self) -> list[Measurement]:
        """The furthest row of every candidate that ran, in the order in which they first did."""
        latest: dict[str, Measurement] = {}
        for row in self._rows.values():
            held = latest.get(row.candidate.key)
            latest[row.candidate.key] = row if held is None or row.rung >= held.rung else held
        return list(latest.values())

    @property
    def best(self) -> Measurement | None:
        """The choice among the rows so far."""
        return choice.best(self.measured, self.question.min_recovery)

    def row(self, candidate: Candidate, rung: int) -> Measurement | None:
        """What a candidate measured at a rung."""
        return self._rows.get((candidate.key, rung))

    def rows(self) -> Iterator[Measurement]:
        """Run the search: a row whenever a candidate was measured at a rung. Raises what `begin` raises, unless that
        was called before.
        """
        try:
            if self.plan is None:
                self.begin()
            yield from self._search()
        finally:
            self.workshop.close()
        if self.off_grid and not self.clock.late:
            yield from self._off_grid()
        self.finished = True

    def begin(self) -> plan.Plan:
        """Predict every candidate, measure the model's pace and choose what is measured; the time runs from here.

        Raises BudgetError before measuring anything where nothing can fit.
        """
        self.clock.start()
        self.predict()
        self.plan = self._made_plan()
        self.exam = self.workshop.exam = self._exam_of(self.plan.sizes)
        if self._planned:
            self.rungs = self.plan.sizes.ladder(self.question)
        entering = len(self.plan.chosen)
        later = sum(min(entering, rung.seats(entering) + 1) for rung in self.rungs[1:])
        self.total = entering + later + len(self.off_grid)
        return self.plan

    def predict(self) -> None:
        """Bytes and time of every candidate. Raises BudgetError where none can fit, with what would."""
        question = self.question
        self._predict(self.workshop, self.candidates)
        fitting = [prediction for prediction in self._servable() if self.fits(prediction)]
        if not fitting:
            smallest = min(self._servable(), key=lambda prediction: prediction.need.peak)
            longest = self.workshop.longest(smallest, question.context, question.memory, question.batch)
            raise choice.refuse_memory(self._servable(), question.memory, question.context, question.batch, longest)
        if question.latency is not None and not any(self.quick(prediction) for prediction in fitting):
            raise choice.refuse_latency(fitting, question.latency, question.context, question.batch)

    def fits(self, prediction: Prediction) -> bool:
        """Whether the bytes are within the budget."""
        return self.bounds.fits(prediction)

    def quick(self, prediction: Prediction) -> bool:
        """Whether the roofline allows the latency."""
        return self.bounds.quick(prediction)

    def pointless(self, prediction: Prediction) -> str | None:
        """See `Bounds.pointless`."""
        return self.bounds.pointless(prediction)

    def dropped(self) -> dict[str, int]:
        """How many candidates do not run, by the reason: those of `Bounds.dropped`, and (where the time is too short
        for all) that their weights take too long to make, or that a gentler one is measured.
        """
        left_out, slow = (0, 0) if self.plan is None else (self.plan.left_out, self.plan.slow)
        return self.bounds.dropped(self._servable()) | {"slow": slow, "gentler": left_out}

    def _worth_running(self, prediction: Prediction) -> bool:
        return self.fits(prediction) and self.quick(prediction) and not self.pointless(prediction)

    # --- the rungs -----------------------------------------------------------------------------------

    def _search(self) -> Iterator[Measurement]:
        assert self.plan is not None, "a search begins before it runs"
        chosen = self._scored(self.plan.chosen)
        for place in range(len(self.rungs)):
            if place == len(self.rungs) - 1:
                self._shorten_last()
            rung = self.rungs[place]
            yield from self._climb(rung, chosen)
            chosen = self._next(rung)
            if self.clock.late:
                return
        yield from self._look_beyond()

    def _predict(self, workshop: Workshop, candidates: Sequence[Candidate]) -> None:
        for candidate, predicted in workshop.predictions(candidates, self.question.context, self.question.batch):
            if isinstance(predicted, Prediction):
                self.predictions[candidate.key] = predicted
            else:
                self.skipped.append((candidate, predicted))

    def _made_plan(self) -> plan.Plan:
        """All that may run, or what the time reaches of a model that is too slow for all."""
        entering = self._entrants()
        if self.question.minutes is None or not self._planned or self.clock.late:
            return plan.whole(entering)
        try:
            forecast = self.workshop.forecast(entering)
        except OutOfTime:
            return plan.whole(entering)
        every, asked = entering, self.question.candidates is not None
        if not asked:
            limit = plan.most_making(self.question.minutes)
            entering = plan.affordable(self.question, every, forecast, self.pinned, limit)
        known = [self.predictions[candidate.key] for candidate in entering]  # what does not fit stands for nothing
        running = [prediction for prediction in known if self.fits(prediction) and self.quick(prediction)]
        keys = {BASE.key} | self.pinned | deciding(running, self.question.latency)
        few = entering if asked else [candidate for candidate in entering if candidate.key in keys]
        made = plan.make(self.question, entering, few, forecast, self._exam_of, self.clock.spent)
        return replace(made, slow=len(every) - len(entering))

    def _shorten_last(self) -> None:
        """Fit the last rung into the time that is left, where those before took longer than they were thought to."""
        if self.plan is None or self.plan.total is None:
            return
        try:
            forecast = self.workshop.forecast(self.plan.chosen)
        except OutOfTime:
            return
        made = plan.shortened(self.plan, self.question, forecast, self._exam_of, self.clock.spent, self.clock.left)
        if made.sizes != self.plan.sizes:
            self.plan, self.rungs[-1] = made, made.sizes.ladder(self.question)[-1]
            self.exam = self.workshop.exam = self._exam_of(made.sizes)

    def _exam_of(self, sizes: plan.Sizes) -> Exam:
        question, tokenizer = self.question, self.question.model.require_tokenizer()
        longest, count = min(self.prefix, sizes.length), sizes.asked(question)
        return Exam(tokenizer, self.state, question.tasks, count, question.seed, longest)

    def _entrants(self) -> list[Candidate]:
        known = [candidate for candidate in self.candidates if candidate.key in self.predictions]
        sure = self.pinned | {BASE.key}
        return [each for each in known if each.key in sure or self._worth_running(self.predictions[each.key])]

    def _climb(self, rung: Rung, chosen: Sequence[Candidate]) -> Iterator[Measurement]:
        """Measure the chosen at a rung, the baseline before all others."""
        order = [BASE, *(candidate for candidate in chosen if candidate.key != BASE.key)]
        groups = list(grouped(order))
        for place, group in enumerate(groups):
            share = self._work(group) / sum(self._work(members) for members in groups[place:])
            in_time = partial(self._goes_on, rung, self._deadline(rung, share))
            yield from self._measured(self.workshop, group, rung, in_time)
        self.unreached += sum((candidate.key, rung.index) not in self._tried for candidate in order)

    def _measured(
        self, workshop: Workshop, group: Sequence[Candidate], rung: Rung, go_on: Callable[[], bool]
    ) -> Iterator[Measurement]:
        """The rows of a group that shares weights; those that cannot be made are skipped, with the reason."""
        try:
            for candidate, values in workshop.measure(group, rung, go_on):
                self._tried.add((candidate.key, rung.index))
                if "error" in values:
                    self.skipped.append((candidate, values["error"]))
                else:
                    yield self._keep(candidate, rung, values)
        except OutOfTime:
            return
        self.workshop.spent += workshop.loading_seconds(group[0])

    def _next(self, rung: Rung) -> list[Candidate]:
        """Who goes on: survivors among those that fit, and the pinned."""
        index = next((place + 1 for place, other in enumerate(self.rungs) if other is rung), 0)
        if index >= len(self.rungs):
            return []
        here = [row for row in self._rows.values() if row.rung == rung.index and row.candidate.servable]
        rivals = [row for row in here if row.fits and row.candidate.key != BASE.key and self._nearly_quick(row)]
        first = sum(row.rung == self.rungs[0].index for row in self._rows.values())
        chosen = survivors(rivals, self.rungs[index].seats(first), self.question.seed)
        pinned = [row.candidate for row in here if row.candidate.key in self.pinned]
        return [row.candidate for row in chosen if row.candidate.key not in self.pinned] + pinned

    def _nearly_quick(self, row: Measurement) -> bool:
        limit = self.question.latency
        return limit is None or row.step is None or row.step <= limit * SLACK

    def _keep(self, candidate: Candidate, rung: Rung, values: dict[str, Any]) -> Measurement:
        predicted, base = self.predictions[candidate.key], BASE if candidate.servable else OFF_GRID_BASE
        scores = self.exam.scores(candidate, base, rung.items) if rung.tasks else None
        batch, limit = self.question.batch, self.question.latency
        row = measured(predicted, rung.index, values, scores, fits=self.fits(predicted), batch=batch, limit=limit)
        self._rows[candidate.key, rung.index] = row
        return row

    def _scored(self, chosen: Sequence[Candidate]) -> list[Candidate]:
        """The chosen; where some need scores of the model's heads that nobody measured, that is done now, and those of
        a model that cannot be scored are skipped.
        """
        kinds = needed(chosen)
        try:
            reasons = self.workshop.score_heads(kinds) if kinds else {}
        except OutOfTime:
            return list(chosen)  # nothing of them will be measured
        lost = {candidate.key: kind for candidate in chosen for kind in needed([candidate]) if kind in reasons}
        self.skipped += [(candidate, reasons[lost[candidate.key]]) for candidate in chosen if candidate.key in lost]
        return [candidate for candidate in chosen if candidate.key not in lost]

    def _work(self, group: Sequence[Candidate]) -> float:
        """How much of a rung's time a group gets: a share for each, more where the prompt is read more often."""
        return sum(self.predictions[candidate.key].prefills for candidate in group)

    def _look_beyond(self) -> Iterator[Measurement]:
        """Short measurements of the cheapest candidates that the bounds kept out: what a little more would bring."""
        best, rung = self.best, self.rungs[0]
        if best is None or self.plan is None or self.row(best.candidate, rung.index) is None or len(self.rungs) < 2:
            return
        excluded = (
            prediction
            for prediction in self._servable()
            if (prediction.candidate.key, rung.index) not in self._rows
            and not (self.fits(prediction) and self.quick(prediction))
            and not self.pointless(prediction)
        )
        for group in grouped(self._scored(steps_up(excluded, best.candidate, self.plan.beyond))):
            yield from self._measured(self.workshop, group, rung, self._in_time)

    def _off_grid(self) -> Iterator[Measurement]:
        """What weight techniques cost where the checkpoint does not lie on their grid; without tasks."""
        model = offgrid(self.question.model, dtype=BFLOAT16, packed=True)
        shop = self._workshop(self.question, OFF_GRID_BASE, model)
        try:
            self._predict(shop, self.off_grid)
            for group in grouped(candidate for candidate in self.off_grid if candidate.key in self.predictions):
                yield from self._measured(shop, group, self.rungs[0], self._in_time)
        finally:
            shop.close()

    # --- time ----------------------------------------------------------------------------------------

    def _deadline(self, rung: Rung, part: float) -> float:
        """When `part` of a rung must be over, seconds on the monotonic clock."""
        place = self.rungs.index(rung) + len(SHARES) - len(self.rungs)
        planned = 0.0 if self.plan is None else self.plan.share(rung.index)
        return self.clock.deadline(max(SHARES[place], planned), part)

    def _in_time(self) -> bool:
        return not self.clock.late

    def _goes_on(self, rung: Rung, limit: float) -> bool:
        """Whether another candidate may be measured: within the group's share, or, while the rung has no answer yet,
        within the whole time.
        """
        if time.monotonic() < limit:
            return True
        answered = any(row.eligible for row in self._rows.values() if row.rung == rung.index)
        return not answered and not self.clock.late

    def _servable(self) -> list[Prediction]:
        return [self.predictions[candidate.key] for candidate in self.candidates if candidate.key in self.predictions]

    def _workshop(self, question: Question, base: Candidate, model: Any = None) -> Workshop:
        return Workshop(
            model or question.model,
            base,
            self.state,
            self.exam,
            self.prefix,
            self.clock,
            question.threads,
            question.native,
        )
