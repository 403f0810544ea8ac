"""Speculative decoding: a small model drafts, the target judges the whole draft in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from thrifty.arrays import Floats
from thrifty.card import Card
from thrifty.decoding.acceptance import Acceptance, best_length
from thrifty.decoding.draft import MOST_ROWS, Accepted, Draft
from thrifty.decoding.drawing import Weights, inverse
from thrifty.decoding.rejection import DRAFT, judge
from thrifty.decoding.sampling import Sampler
from thrifty.decoding.scores import Scores
from thrifty.decoding.services import DraftModel, ModelFacts, Services
from thrifty.decoding.step_costs import StepCosts
from thrifty.decoding.strategy import Asked, Continuation, DecodingStrategy, Drafter, follow
from thrifty.errors import RecipeError, ThriftyError
from thrifty.registry import technique

LONGEST = 8  # tokens of an adaptive draft: rows of logits are held for as many
USUAL = 4  # tokens of a draft where steps were not measured yet, and where a seed is to give the same answer again
PAUSE, LONGEST_PAUSE = 16, 256  # steps without a draft, where none pays, before one is tried; doubled each time


@technique(
    stage="decoding",
    card=Card(
        title="Speculative decoding (Fast Inference from Transformers via Speculative Decoding; Accelerating Large "
        "Language Model Decoding with Speculative Sampling)",
        paper="2211.17192, 2302.01318",
        year=2022,
        mechanism="A small model drafts a few tokens; the target scores them in one pass, and takes each with "
        "probability min(1, p/q), the first other one from the residual distribution.",
        claim="2x to 3x speed (T5-XXL with a T5-small draft), 2x to 2.5x (Chinchilla 70B), with the target's own "
        "output distribution",
        limits=(
            "both models need the same tokens",
            "the draft's weights and caches take memory; layers of the model itself take the latter alone",
            "adaptive: each sequence has the γ from 0 to 8 that maximises (1 − α^(γ+1)) / (1 − α) / (γ·d + t(γ + 1))",
            "α is the sequence's own, newer drafts weighing more; d and t(rows) are steps as this engine measured them",
            "with t constant that is the papers' rule, c = d / t; they fix γ, or choose it for a whole task",
            "sampled requests with a seed draft 4 tokens, whatever was measured: a seed gives the same answer again",
            "slower than plain decoding where few drafts are taken and the length is fixed",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class Speculative(DecodingStrategy):
    """draft: name or path of the model that drafts, or parts of the model itself: "layers:0-8,22-29" runs these layers,
    "adapter:NAME" all of them with an adapter of the engine, "adapter:NAME layers:0-8" both. length: tokens of a draft
    (the papers' γ and K), or "adaptive": at most 8, as many as pay by measured times and acceptance.
    """

    draft: Annotated[str, Field(min_length=1)]
    length: Annotated[int, Field(ge=1, le=MOST_ROWS - 1)] | Literal["adaptive"] = "adaptive"

    @property
    def rows(self) -> int:
        """See DecodingStrategy."""
        return 1 + (LONGEST if self.length == "adaptive" else self.length)

    @property
    def models(self) -> tuple[str, ...]:
        """See DecodingStrategy."""
        return (self.draft,)

    def check(self, facts: ModelFacts, models: Mapping[str, DraftModel]) -> None:
        """Raise RecipeError where the draft model has other tokens."""
        own, other = facts.tokens, models[self.draft].facts.tokens
        if own != other:
            raise RecipeError(
                f"speculative: draft = {self.draft!r} has a vocabulary of {other} tokens, the model one of {own}; use "
                "a smaller model of the same family"
            )

    def open(self, services: Services) -> Drafter:
        """See DecodingStrategy."""
        return ModelDrafter(services.models[self.draft], services.facts.vocabulary_size, services.costs)

    def propose(self, asked: Sequence[Asked]) -> list[Draft]:
        """The draft model runs for all sequences together, as often as the longest of their drafts has tokens."""
        lines = [_begin(sequence, self._length(sequence, len(asked))) for sequence in asked]
        while running := [line for line in lines if line.next_tokens]:
            _advance(running)
        return [line.end() for line in lines]

    def _length(self, asked: Asked, sequences: int) -> int:
        """Tokens of a sequence's draft."""
        if self.length != "adaptive":
            return self.length
        parameters = asked.continuation.sampler.parameters
        if not parameters.greedy and parameters.seed is not None:
            return USUAL
        return _drafter(asked).adapted(sequences)


class ModelDrafter(Drafter):
    """A sequence of the draft model, and the distributions that its newest draft was drawn from (none if greedy)."""

    def __init__(self, model: DraftModel, vocabulary_size: int, costs: StepCosts) -> None:
        """vocabulary_size, costs: of the target."""
        self.model = model
        self.sequence = model.open()
        self.vocabulary_size = vocabulary_size
        self.proposed: list[Weights] = []
        self._costs = costs
        self._acceptance = Acceptance()
        self._judged = self._paused = 0
        self._pause = PAUSE

    def adapted(self, sequences: int) -> int:
        """The length of the draft that pays best in a step of so many sequences; see `best_length`. Where none pays,
        one token now and then tells whether that is still so.
        """
        if not (self.model.costs.known and self._costs.known):
            return USUAL
        length = best_length(self._acceptance.rate, LONGEST, self._costs, self.model.costs, sequences)
        if length:
            self._paused, self._pause = 0, PAUSE
        elif self._paused < self._pause:
            self._paused += 1
        else:
            self._paused, self._pause = 0, min(2 * self._pause, LONGEST_PAUSE)
            return 1
        return length

    def catch_up(self, tokens: Sequence[int]) -> bool:
        """A long prompt is computed piece by piece, one a step. One that is near the context's end gets no draft, and
        nothing is computed while drafting pauses.
        """
        pauses = 0 < self._paused < self._pause
        return pauses or _near_end(self.model, tokens) or self.sequence.catch_up(tokens)

    def accept(self, continuation: Continuation, draft: Draft, scores: Scores) -> Accepted:
        """By the papers' rule. Greedy drafts are taken as far as the sampler chooses the same: the papers' rule for
        distributions on one token."""
        self._judged = len(draft.tokens)
        if not self.proposed:
            return follow(continuation.sampler, draft, scores)
        return judge(continuation.sampler, draft, self.proposed, scores)

    def committed(self, tokens: Sequence[int]) -> None:
        """All but the last were drafted."""
        if self._judged:
            self._acceptance.note(self._judged, len(tokens) - 1)

    def close(self) -> None:
        """Free the draft model's cache."""
        self.proposed = []
        self.sequence.close()


class Line:
    """A draft in the making. next_tokens: what the draft model computes next; empty: it goes no further."""

    def __init__(self, drafter: ModelDrafter, sampler: Sampler, next_tokens: tuple[int, ...], length: int) -> None:
        """length: of the draft."""
        self.drafter = drafter
        self.next_tokens = next_tokens
        self._length = length
        self._sampler = sampler
        self._tokens: list[int] = []
        self._proposed: list[Weights] = []

    def add(self, scores: Scores, row: int) -> None:
        """Draw the next token from a row of the draft model's scores. One that is no number ends the draft."""
        token = self._draw(scores, row)
        if token is not None:
            self._tokens.append(token)
        self.next_tokens = () if token is None or len(self._tokens) >= self._length else (token,)

    def end(self) -> Draft:
        """The finished draft; its drafter remembers the distributions."""
        self.drafter.proposed = self._proposed
        return Draft(tuple(self._tokens))

    def _draw(self, scores: Scores, row: int) -> int | None:
        best = scores.best(row)
        if best < 0:
            return None
        if self._sampler.parameters.greedy:
            usable = best < self.drafter.vocabulary_size and best not in self._sampler.absent.ids
            return best if usable else None
        here = self._sampler.following(self._tokens)
        if here.parameters.noise is not None:  # both models' tokens by the same noise: most are alike
            return here.choose(as_target(scores.logits(row), self.drafter.vocabulary_size)).token
        chances = here.probabilities(as_target(scores.logits(row), self.drafter.vocabulary_size))
        self._proposed.append(chances)
        return inverse(chances, here.number(DRAFT))


def as_target(logits: Floats, vocabulary_size: int) -> Floats:
    """Logits [vocabulary] of the draft model as the target has them: rows that pad either matrix are cut or −inf."""
    if len(logits) >= vocabulary_size:
        return logits[:vocabulary_size]
    padded = np.full(vocabulary_size, -math.inf, np.float32)
    padded[: len(logits)] = logits
    return padded


def _drafter(sequence: Asked) -> ModelDrafter:
    if not isinstance(sequence.drafter, ModelDrafter):
        raise ThriftyError(f"{sequence.drafter!r} was not opened by the speculative strategy")
    return sequence.drafter


def _begin(sequence: Asked, length: int) -> Line:
    """A draft of so many tokens behind a sequence's own; an empty one where the draft model's context ends."""
    drafter, tokens = _drafter(sequence), sequence.continuation.tokens
    ends = length == 0 or _near_end(drafter.model, tokens)
    return Line(drafter, sequence.continuation.sampler, () if ends else drafter.sequence.follow(tokens), length)


def _near_end(model: DraftModel, tokens: Sequence[int]) -> bool:
    """Whether the draft model's context does not hold a step's rows behind the tokens."""
    return len(tokens) + MOST_ROWS > model.facts.context


def _advance(lines: Sequence[Line]) -> None:
    """One more token for each line, from one pass of the draft model over all of them."""
    scores = lines[0].drafter.model.run([(line.drafter.sequence, line.next_tokens) for line in lines])
    row = -1
    for line in lines:
        row += len(line.next_tokens)
        line.add(scores, row)
