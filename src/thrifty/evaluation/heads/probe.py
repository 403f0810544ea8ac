"""Importance scores of attention heads, measured on the model itself: which heads look things up.

A question counts where each token of its answer is the model's own first choice, so the run is the greedy answer. Its
words, names and prose are the probe's own: no task asks them.
"""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from thrifty.errors import PromptError
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.heads.items import ProbeItems, ProbeQuestion
from thrifty.evaluation.heads.looking import answered, look
from thrifty.evaluation.heads.reconstruction import SAMPLES, head_maxima
from thrifty.evaluation.heads.rules import RULES
from thrifty.models.head_scores import HeadScores, checkpoint_version, find, save

if TYPE_CHECKING:
    from thrifty.arrays import Floats
    from thrifty.engine.engine import Engine

ENOUGH = 0.25
"""The share of questions that a model must answer, so that its scores are of more than one or two."""
AHEAD = 2
"""How many right answers there must be for each wrong one that a riddle offers: who guesses has as many of both."""


@dataclass(frozen=True)
class ProbeSettings:
    """lengths: of prompts, in tokens. depths: places of the needle, evenly from begin to end. repeats: questions for
    every length and depth. sample: tokens of a text that the kind "kvzip" has the model repeat.
    """

    lengths: tuple[int, ...] = (256, 480)
    depths: int = 8
    repeats: int = 1
    seed: int = 0
    sample: int = 1024

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1 or self.depths < 1 or self.repeats < 1 or self.sample < 1:
            raise PromptError(
                f"lengths = {list(self.lengths)}, depths = {self.depths}, repeats = {self.repeats}, "
                f"sample = {self.sample}; use 1 or more each"
            )

    def questions(self, kind: str) -> int:
        """Questions of one kind, or texts to repeat."""
        return len(SAMPLES) if kind == "kvzip" else len(self.lengths) * self.depths * self.repeats


def probe(
    engine: Engine, kind: str, settings: ProbeSettings | None = None, step: Callable[[], None] = lambda: None
) -> HeadScores:
    """Scores of one kind; step: called after each question.

    "r", "r2": the mean over the questions that the model answers. "kvzip": the greatest over the texts. Raises
    MeasurementError where the model answers too few, or where no head earns anything; PromptError for lengths that
    the model or the questions do not fit.
    """
    settings = settings or ProbeSettings()
    _check(engine, kind, settings)
    if kind == "kvzip":
        total, used = head_maxima(engine, settings.sample, step), len(SAMPLES)
    else:
        total, used = _by_questions(engine, kind, settings, step)
    if not total.any():
        raise MeasurementError(f"no head earns anything in the head probe '{kind}': use a larger model.")
    return HeadScores(
        kind=kind,
        version=checkpoint_version(engine.model),
        layers=engine.probe().cache_model.policy_layers,
        scores=tuple(tuple(row) for row in total.tolist()),
        asked=settings.questions(kind),
        used=used,
        settings=asdict(settings),
        date=datetime.date.today().isoformat(),
    )


def score_once(engine: Engine, kind: str) -> None:
    """Probe and save where the model has no scores of this kind. Raises what `probe` raises."""
    if find(engine.model, kind) is None:
        save(engine.model, probe(engine, kind))


def questions(items: ProbeItems, kind: str, settings: ProbeSettings) -> Iterator[ProbeQuestion]:
    """Every length × depth × repeat, the same for a seed."""
    for length in settings.lengths:
        for place in range(settings.depths):
            for repeat in range(settings.repeats):
                chance = random.Random(f"{settings.seed} {kind} {length} {place} {repeat}")
                yield items.make(kind, length, place / max(1, settings.depths - 1), chance)


def _by_questions(engine: Engine, kind: str, settings: ProbeSettings, step: Callable[[], None]) -> tuple[Floats, int]:
    """The mean over answered questions, [layers, most heads], and how many these are."""
    info = engine.probe().cache_model
    total, used, misled = np.zeros((len(info.policy_layers), info.most_heads), np.float32), 0, 0
    for question in questions(ProbeItems(engine.model.require_tokenizer()), kind, settings):
        answer = answered(engine, question)
        earned = None if answer.item is None else look(engine, answer.item, RULES[kind])
        misled += answer.misled
        if earned is not None:
            total += earned
            used += 1
        step()
    _check_answers(kind, settings.questions(kind), used, misled)
    return total / np.float32(used), used


def _check_answers(kind: str, asked: int, used: int, misled: int) -> None:
    """Raises MeasurementError where a model answers too few, or guesses."""
    needed = max(1, math.ceil(ENOUGH * asked), AHEAD * misled)
    if used >= needed:
        return
    wrong = f" and gives the wrong one of two answers to {misled}" if misled else ""
    raise MeasurementError(
        f"not testable with this model: it answers {used} of {asked} questions of the head probe '{kind}'{wrong}; "
        f"{needed} right ones are needed to score its heads. Use shorter --length, or a larger model."
    )


def _check(engine: Engine, kind: str, settings: ProbeSettings) -> None:
    context = engine.model.config.context_length
    longest = settings.sample if kind == "kvzip" else max(settings.lengths)
    if longest > context:
        raise PromptError(f"length = {longest} exceeds this model's context; use at most {context}")
    if engine.model.tokenizer is None:
        raise PromptError("the head probe asks questions in words: it needs a checkpoint with a tokenizer")
