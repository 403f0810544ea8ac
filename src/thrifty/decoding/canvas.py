"""Decoding of masked-diffusion models: a canvas of masks behind the committed tokens is filled in, pass by pass.

In each pass the last committed token and the canvas run as uncommitted rows that all see each other; the row before a
place predicts its token. Committed rows, the prompt's among them, see nothing of the canvas: their keys and values stay
in the cache (LaViDa's prefix cache, arXiv 2505.16839, §3.3; Dimple's "prefilling"). Nothing is committed before the
canvas is full; one pass more then computes the rows that stay.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.decoding.draft import NO_DRAFT, Accepted, Draft
from thrifty.decoding.drawing import Weights, uniform
from thrifty.decoding.possible import check_logits
from thrifty.decoding.sampling import Choice, Sampler
from thrifty.decoding.scores import Scores
from thrifty.decoding.services import ModelFacts, Services
from thrifty.decoding.strategy import Continuation, DecodingStrategy, Drafter, choose, follow
from thrifty.errors import ThriftyError

Rule = Literal["confidence", "random", "margin", "entropy"]
RULES: tuple[Rule, ...] = ("confidence", "random", "margin", "entropy")
SHUFFLE = 7  # purpose of the random numbers of the rule "random"


@dataclass(frozen=True)
class Canvas:
    """choices: of each place, None where a mask is. passes: how many there were. clock: what the strategy counts."""

    choices: tuple[Choice | None, ...]
    passes: int = 0
    clock: int = 0

    @classmethod
    def empty(cls, length: int) -> Canvas:
        """Masks alone."""
        return cls((None,) * length)

    @property
    def masked(self) -> Integers:
        """The places that have a mask, rising."""
        return np.array([place for place, choice in enumerate(self.choices) if choice is None], np.int64)

    def tokens(self, mask_id: int) -> tuple[int, ...]:
        """As the model reads it."""
        return tuple(mask_id if choice is None else choice.token for choice in self.choices)

    def filled(self, guesses: Guesses, places: Sequence[int] | Integers, clock: int | None = None) -> Canvas:
        """With the guesses of these places in it, a pass later."""
        choices = list(self.choices)
        for place in places:
            choices[place] = guesses.choices[place]
        return Canvas(tuple(choices), self.passes + 1, self.clock if clock is None else clock)


@dataclass(frozen=True)
class Guesses:
    """What one pass says of a canvas of n places.

    choices: the sampler's token for each place that has a mask, None for others. probabilities: fp64 [n, vocabulary],
    of the model's own distribution, before temperature and truncation; rows that are no token have none. confidence:
    fp64 [n], of the chosen tokens among them (of the token that is there already, where one is). numbers: fp64 [n], in
    [0, 1), for the rule "random". ends: token ids that end an answer.
    """

    choices: tuple[Choice | None, ...]
    probabilities: Weights
    confidence: Weights
    numbers: Weights
    ends: frozenset[int]

    def ranked(self, rule: Rule) -> Weights:
        """fp64 [n], the higher the sooner a place is filled in: the chosen token's probability; a random number; the
        distance between the two best probabilities; the negative entropy in nats (survey arXiv 2506.13759; Dream).
        """
        if rule == "random":
            return self.numbers
        if rule == "margin":
            best = np.partition(self.probabilities, -2, axis=1)[:, -2:]
            margins: Weights = best[:, 1] - best[:, 0]
            return margins
        if rule == "entropy":
            chances = self.probabilities
            logs = np.log(chances, out=np.zeros_like(chances), where=chances > 0)
            entropies: Weights = (chances * logs).sum(axis=1)
            return entropies
        return self.confidence

    def best(self, places: Integers, count: int, rule: Rule) -> list[int]:
        """The `count` places of `places` that come first by a rule; of equal ones the first."""
        order = np.argsort(-self.ranked(rule)[places], kind="stable")
        return [int(place) for place in places[order[:count]]]


class DenoisingStrategy(DecodingStrategy):
    """Base of strategies that fill in masks: `begin` says how long a canvas is, `refine` what a pass changes."""

    fills_masks: ClassVar[bool] = True

    @property
    @abstractmethod
    def longest(self) -> int:
        """The most places of a canvas, at most 63."""

    @property
    def rows(self) -> int:
        """See DecodingStrategy."""
        return 1 + self.longest

    @abstractmethod
    def begin(self) -> Canvas:
        """The first canvas behind the committed tokens."""

    @abstractmethod
    def refine(self, canvas: Canvas, guesses: Guesses, room: int) -> Canvas:
        """The canvas after a pass. One mask at least must have gone, unless the canvas grew. room: the most places that
        it may have.
        """

    def open(self, services: Services) -> Drafter:
        """See DecodingStrategy. Raises ThriftyError for a model that has no mask."""
        if services.facts.mask_id is None:
            raise ThriftyError("this model has no mask to fill in; decode with 'autoregressive'")
        return Denoiser(self, services.facts, services.facts.mask_id)


class Denoiser(Drafter):
    """The canvas of one sequence. canvas: None between two of them."""

    def __init__(self, strategy: DenoisingStrategy, facts: ModelFacts, mask_id: int) -> None:
        self.canvas: Canvas | None = None
        self._room = strategy.longest
        self._strategy = strategy
        self._facts = facts
        self._mask_id = mask_id

    def propose(self, continuation: Continuation) -> Draft:
        """The canvas as it is now."""
        if self.canvas is None:
            self.canvas = self._strategy.begin()
        tokens = self.canvas.tokens(self._mask_id)
        return Draft(tokens, both_ways=True) if tokens else NO_DRAFT

    def accept(self, continuation: Continuation, draft: Draft, scores: Scores) -> Accepted:
        """A full canvas, up to the first token that ends an answer; else the canvas that the next pass runs.

        An answer has less room than a canvas near its end: then the engine cuts the draft, and the canvas with it.
        """
        sampler, length = continuation.sampler, len(draft.tokens)
        if self.canvas is None or not length:
            return follow(sampler, draft, scores)
        if length < len(self.canvas.choices):
            self._room = min(self._room, length)
        canvas = dataclasses.replace(self.canvas, choices=self.canvas.choices[:length])
        if len(canvas.masked):
            guesses = guesses_of(canvas, sampler, scores, self._facts)
            return Accepted((), unfinished=self._strategy.refine(canvas, guesses, self._room))
        choices = [choice for choice in canvas.choices if choice is not None]
        end_ids = frozenset() if sampler.parameters.ignore_eos else self._facts.end_ids
        ends = next((place for place, one in enumerate(choices) if one.token in end_ids), None)
        if ends is not None:
            return Accepted(tuple(choices[: ends + 1]), tuple(range(ends)))
        return Accepted((*choices, choose(sampler, scores, length, draft.tokens)), tuple(range(length)))

    def go_on(self, unfinished: object) -> None:
        """See Drafter."""
        if not isinstance(unfinished, Canvas):
            raise ThriftyError(f"{unfinished!r} is no canvas of this drafter")
        self.canvas = unfinished

    def committed(self, tokens: Sequence[int]) -> None:
        """See Drafter. The next canvas is a new one."""
        self.canvas, self._room = None, self._strategy.longest


def guesses_of(canvas: Canvas, sampler: Sampler, scores: Scores, facts: ModelFacts) -> Guesses:
    """What a pass says of each place of a canvas; row i of the scores predicts place i. Raises PromptError where the
    logits are no numbers.
    """
    count = len(canvas.choices)
    rows = np.stack([facts.absent.without(scores.logits(place)) for place in range(count)])
    for place in range(count):
        check_logits(rows[place], sampler.position + place)
    probabilities = softmax(rows)
    choices = [
        sampler.choose(scores.logits(place), place) if choice is None else None
        for place, choice in enumerate(canvas.choices)
    ]
    present = (own or old for own, old in zip(choices, canvas.choices, strict=True))
    confidence = np.array([probabilities[place, one.token] for place, one in enumerate(present) if one is not None])
    seed, start = sampler.seed ^ SHUFFLE << 32, sampler.position
    numbers = np.array([uniform(seed ^ canvas.passes, sampler.stream, start + place) for place in range(count)])
    return Guesses(tuple(choices), probabilities, confidence, numbers, facts.end_ids)


def softmax(rows: Floats) -> Weights:
    """fp64 probabilities of logits [n, vocabulary]."""
    shifted = rows.astype(np.float64) - rows.max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    chances: Weights = weights / weights.sum(axis=1, keepdims=True)
    return chances
