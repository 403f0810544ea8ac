"""What a search measures, and on how much text, so that it ends in its time: chosen before it begins, by the model's
pace. A fast model has all recipes measured on whole passages. Of a slow one only those are measured that can be the
best, and then on shorter passages and fewer questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from thrifty.evaluation import quality
from thrifty.frontier.candidates import Candidate, grouped
from thrifty.frontier.exam import ITEMS, LENGTH, Exam
from thrifty.frontier.made_weights import is_slow, making
from thrifty.frontier.pace import Forecast
from thrifty.frontier.question import LONGEST_PREFIX, Question
from thrifty.frontier.reading import needed
from thrifty.frontier.rungs import FEW, FIRST_PREFIX, FIRST_SCORED, Rung, ladder
from thrifty.models.model import Model
from thrifty.weights.sizes import storing
from thrifty.weights.structure import linears
from thrifty.weights.technique import WeightTechnique

FILLED = 0.7  # of the time is planned for; the rest is for what takes longer than it was thought to
MAKING = 0.25  # of that, at most, for weights that take long to make
ADDED = 6, 2  # recipes above the budget that are looked at: in a search of all recipes, and of those that decide


@dataclass(frozen=True)
class Sizes:
    """first, little: tokens that the first rungs compress and score. few: questions of every task that the second one
    asks. length: tokens of a question's context. prefix, scored, items: the same of the last rung, at most.
    """

    first: int
    little: int
    few: int
    length: int
    prefix: int
    scored: int
    items: int

    def ladder(self, question: Question) -> list[Rung]:
        """The rungs for a question, whose own wishes stand."""
        prefix = question.filling_prefix()
        if question.prefix is None:
            prefix = min(prefix, self.prefix)
        scored = min(quality.SCORED, self.scored) if question.scored is None else question.scored
        return ladder(prefix, scored, first=self.first, little=self.little, few=self.few)

    def asked(self, question: Question) -> int:
        """Questions of every task that the last rung asks."""
        return self.items if question.items is None else question.items


LEVELS = (
    Sizes(FIRST_PREFIX, FIRST_SCORED, FEW, LENGTH, LONGEST_PREFIX, quality.SCORED, ITEMS),
    Sizes(FIRST_PREFIX, FIRST_SCORED, FEW, 384, 2048, 128, 8),
    Sizes(768, 24, FEW, 320, 1536, 96, 6),
    Sizes(512, 16, 1, 256, 1024, 64, 4),
    Sizes(512, 16, 1, 256, 768, 32, 2),
)


@dataclass(frozen=True)
class Plan:
    """chosen: the candidates that are measured. left_out: how many are not, since a gentler one is. seconds: that it is
    expected to take, rung by rung; none where nothing was forecast. beyond: recipes above the budget to look at. probe:
    seconds of scoring the model's heads before, where a chosen recipe needs that and nobody did it yet. slow: how many
    are not measured, since their weights take too long to make. making: seconds of making the weights of the chosen
    ones once.
    """

    sizes: Sizes
    chosen: tuple[Candidate, ...]
    left_out: int = 0
    seconds: tuple[float, ...] = ()
    beyond: int = ADDED[0]
    probe: float = 0.0
    slow: int = 0
    making: float = 0.0

    @property
    def total(self) -> float | None:
        """Seconds of the whole search, the probe of heads included."""
        return self.probe + sum(self.seconds) if self.seconds else None

    def share(self, rung: int) -> float:
        """The part of the time by which a rung should be over; 0 where nothing was forecast."""
        total = self.total
        return (self.probe + sum(self.seconds[: rung + 1])) / total if total else 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        total = self.total
        return {
            "seconds": None if total is None else round(total, 1),
            "probe_seconds": round(self.probe, 1),
            "recipes": len(self.chosen),
            "left_out": self.left_out,
            "slow": self.slow,
            "making_seconds": round(self.making, 1),
            "first": [self.sizes.first, self.sizes.little],
            "last": [self.sizes.prefix, self.sizes.scored],
            "questions": self.sizes.items,
        }


def whole(candidates: Sequence[Candidate]) -> Plan:
    """All candidates at full size, without a look at the time."""
    return Plan(LEVELS[0], tuple(candidates))


def affordable(
    question: Question, candidates: Sequence[Candidate], forecast: Forecast, kept: Set[str], limit: float
) -> list[Candidate]:
    """The candidates without those whose weights take too long to make: the slowest techniques go until the rest of
    them take at most `limit` seconds together. kept: keys of those that stay in any case.
    """
    groups = [(making_seconds(question, group[:1], forecast), group) for group in grouped(candidates)]
    groups.sort(key=lambda pair: pair[0])
    total, gone = 0.0, set[str]()
    for seconds, group in groups:
        if not is_slow(group[0].recipe.weights):
            continue
        if total + seconds > limit:
            gone |= {candidate.key for candidate in group} - kept
        else:
            total += seconds
    return [candidate for candidate in candidates if candidate.key not in gone]


def making_seconds(question: Question, candidates: Sequence[Candidate], forecast: Forecast) -> float:
    """Seconds of making the weights of candidates, once for those that share them."""
    return forecast.weights(sum(_rounded(question.model, group[0]) for group in grouped(candidates)))


def make(
    question: Question,
    candidates: Sequence[Candidate],
    deciding: Sequence[Candidate],
    forecast: Forecast,
    exam_of: Callable[[Sizes], Exam],
    spent: float,
) -> Plan:
    """The largest plan whose forecast is within the question's minutes; of too little time the least one. spent:
    seconds of it that are gone already. exam_of: the questions at a size.
    """
    limit = 60 * (question.minutes or 0.0) * FILLED - spent
    few = (deciding, ADDED[1], forecast.probe(forecast.unscored.intersection(needed(deciding))))
    every = (candidates, ADDED[0], forecast.probe(forecast.unscored.intersection(needed(candidates))))
    made = None
    for sizes in LEVELS:
        exam = exam_of(sizes)
        for chosen, beyond, probe in (every, few):
            if sizes is not LEVELS[0] and chosen is candidates and len(deciding) < len(candidates):
                continue  # what decides comes before what is nice to know
            seconds = _forecast(sizes, question, chosen, forecast, exam, beyond)
            made = Plan(sizes, tuple(chosen), len(candidates) - len(chosen), seconds, beyond, probe)
            made = replace(made, making=making_seconds(question, chosen, forecast))
            if question.minutes is None or sum(seconds) + probe <= limit:
                return made
    assert made is not None
    return made


def shortened(
    plan: Plan, question: Question, forecast: Forecast, exam_of: Callable[[Sizes], Exam], spent: float, left: float
) -> Plan:
    """The plan with a last rung that `left` seconds will do for, should it take as much longer than its forecast as the
    rungs before did, which took `spent` seconds; the least one where none will. Questions stay as long as they were.
    """
    slower = max(1.0, spent / max(1e-9, plan.probe + sum(plan.seconds[:-1])))
    made = plan
    for level in LEVELS:
        if level.prefix > plan.sizes.prefix or level.items > plan.sizes.items:
            continue
        sizes = replace(plan.sizes, prefix=level.prefix, scored=level.scored, items=level.items)
        seconds = _forecast(sizes, question, plan.chosen, forecast, exam_of(sizes), plan.beyond)
        made = replace(plan, sizes=sizes, seconds=(*plan.seconds[:-1], seconds[-1]))
        if slower * seconds[-1] <= left:
            break
    return made


def _forecast(
    sizes: Sizes, question: Question, chosen: Sequence[Candidate], forecast: Forecast, exam: Exam, beyond: int
) -> tuple[float, ...]:
    """Seconds of every rung, the uncompressed model's own runs included. Who goes on is not known, so of later rungs it
    is thought to be those that read a prompt most often.
    """
    parts, rows = [], len(chosen)
    rounded = sorted((_rounded(question.model, group[0]) for group in grouped(chosen)), reverse=True)
    reads = forecast.reads_of(chosen)
    for rung in sizes.ladder(question):
        rows = min(rows, rung.seats(len(chosen)))
        run = forecast.run(rung.prefix, rung.timed + 1 + rung.scored, rung.scored)
        runs = 1 if rung.index == 1 else rows + 1 + (beyond if rung.index == 0 else 0)  # the second has the first's
        seconds = runs * run + forecast.weights(sum(rounded[:rows]))
        if rung.index != 1:
            seconds += forecast.again(rung.prefix, reads[:rows])
        if rung.tasks:
            seconds += _asked(sizes, question, rung, forecast, exam, reads[:rows])
        parts.append(seconds)
    return tuple(parts)


def _asked(
    sizes: Sizes, question: Question, rung: Rung, forecast: Forecast, exam: Exam, reads: Sequence[float]
) -> float:
    """Seconds of a rung's questions. reads: prefills of each candidate; the uncompressed model comes on top."""
    questions = exam.count(rung.items)
    each = questions * forecast.run(exam.length, 0, 0) + exam.steps(rung.items) * forecast.step(0)
    seconds = (len(reads) + 1) * each + questions * forecast.again(exam.length, reads)
    known = sizes.few / sizes.asked(question) if rung.items is None else 0.0  # by the second rung
    return seconds * max(0.0, 1.0 - known)


def _rounded(model: Model, candidate: Candidate) -> int:
    """How many weights a candidate's techniques round, each as often as its making takes longer than `rtn`."""
    total = 0.0
    for table, technique in zip(candidate.recipe.weights, candidate.recipe.techniques("weights"), strict=True):
        stored = storing(technique)
        assert isinstance(stored, WeightTechnique), "what changes several linears at a time is not predicted"
        chosen = (info.linear for info in linears(model) if stored.selects(info))
        total += making([table]) * sum(linear.out_features * linear.in_features for linear in chosen)
    return round(total)


def most_making(minutes: float) -> float:
    """Seconds that weights may take to be made, of a fit of so many minutes."""
    return MAKING * FILLED * 60 * minutes
