"""Sampling: one row of logits in, one token out, independent of every other row.

Randomness is counter-based: the draw for a token is a pure function of (seed, stream, position). So a
sample does not depend on its neighbours in a batch, on the order of steps, or on a pause in between.
"""

from __future__ import annotations

import copy
import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Flags, Floats
from thrifty.decoding.constraint import Constraint
from thrifty.decoding.drawing import Weights, distribution, draw, largest, uniform
from thrifty.decoding.gumbel import coupled, noise_at, observe
from thrifty.decoding.noise import Observed
from thrifty.decoding.possible import NONE_ABSENT, Absent, check_logits, check_scores
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.errors import PromptError


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of a chosen token, and the most likely alternatives as (token id,
    logprob), best first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Choice:
    """One chosen token."""

    token: int
    logprob: TokenLogprob | None = None


class Sampler:
    """The sampling state of one sample: its seed, its stream, its place and what it has said.

    seed: fixed by the parameters, or drawn. stream: tells the samples of one request apart; forks get
    their own.
    """

    def __init__(
        self,
        parameters: SamplingParameters,
        vocabulary_size: int,
        stream: int = 0,
        absent: Absent = NONE_ABSENT,
        constraint: Constraint | None = None,
    ) -> None:
        """absent: rows that are no token. constraint: of the parameters' grammar. Raises PromptError where a bias or
        stop id lies beyond the vocabulary, or a bias is for a row that is no token.
        """
        check_tokens("logit_bias", parameters.logit_bias, vocabulary_size)
        absent.check("logit_bias", parameters.logit_bias)
        check_tokens("stop_token_ids", parameters.stop_token_ids, vocabulary_size)
        self.parameters = parameters
        self.seed = secrets.randbits(63) if parameters.seed is None else parameters.seed
        self.stream = stream
        self.absent = absent
        self.constraint = constraint
        self.position = 0
        self.vocabulary_size = vocabulary_size
        self._counts: Floats | None = None
        self._seen: Flags | None = None
        if parameters.penalised:
            self._counts = np.zeros(vocabulary_size, np.float32)
            self._seen = np.zeros(vocabulary_size, np.bool_)

    @property
    def needs_logits(self) -> bool:
        """False where the arg-max of the logits is the whole answer."""
        return not self.parameters.plain_greedy

    @property
    def said(self) -> tuple[Floats | None, Flags | None]:
        """How often the answer has each token, and whether prompt or answer have it: [vocabulary] each, shared; None
        where no penalty asks.
        """
        return self._counts, self._seen

    def observe_prompt(self, tokens: Iterable[int]) -> None:
        """Count the prompt for the repetition penalty."""
        if self._seen is not None:
            self._seen[np.fromiter(tokens, np.int64)] = True

    def commit(self, token: int) -> None:
        """Advance by one token of the answer, chosen here or forced from outside."""
        self.position += 1
        if self.constraint is not None:
            self.constraint.commit(token)
        if self._counts is not None and self._seen is not None:
            self._counts[token] += 1
            self._seen[token] = True

    def fork(
        self,
        stream: int,
        parameters: SamplingParameters | None = None,
        forced: Sequence[int] = (),
        constraint: Constraint | None = None,
    ) -> Sampler:
        """A sampler that has said the same, and draws from its own stream (and seed, with own
        parameters). forced: the tokens that come next. constraint: of a grammar that is not this sampler's own, which
        begins here; with its own grammar the fork goes on where this one is.
        """
        chosen = self.parameters if parameters is None else parameters
        if forced:
            other: Sampler = ForcedSampler(
                chosen, self.vocabulary_size, forced, stream, start=self.position, absent=self.absent
            )
        else:
            if self.constraint is not None and chosen.grammar == self.parameters.grammar:
                constraint = self.constraint.fork()
            other = Sampler(chosen, self.vocabulary_size, stream, self.absent, constraint)
        if parameters is None or parameters.seed is None:
            other.seed = self.seed
        other.position = self.position
        if other._counts is not None and self._counts is not None:
            other._counts = self._counts.copy()
        if other._seen is not None and self._seen is not None:
            other._seen = self._seen.copy()
        return other

    def following(self, tokens: Iterable[int]) -> Sampler:
        """This sampler as it will be when `tokens` are committed. It is not changed itself."""
        other = copy.copy(self)
        if self.constraint is not None:
            other.constraint = self.constraint.fork()
        if self._counts is not None and self._seen is not None:
            other._counts, other._seen = self._counts.copy(), self._seen.copy()
        for token in tokens:
            other.commit(token)
        return other

    def choose(self, logits: Floats, offset: int = 0) -> Choice:
        """The token for one row. logits: [vocabulary] fp32, not changed. Does not advance: call `commit`.

        offset: how many uncommitted tokens precede this one; penalties and a grammar do not know them (`following`
        does). Raises
        PromptError where the logits are no numbers, or nothing is left to choose.
        """
        options = self.parameters
        logits = self._possible(logits, offset)
        scores = self._scores(logits, offset)
        if options.greedy:
            token = int(scores.argmax())
        elif options.noise is not None:
            place = self.position + offset
            token = coupled(scores, options, noise_at(options.noise, self.seed, self.stream, place, scores.size))
        else:
            token = draw(scores, options, uniform(self.seed, self.stream, self.position + offset))
        return self._choice(token, logits)

    def probabilities(self, logits: Floats) -> Weights:
        """What the next token is drawn from: [vocabulary] fp64, after penalties, temperature and truncation.

        logits: of its row, [vocabulary] fp32, not changed. Raises PromptError as `choose`.
        """
        return distribution(self._scores(self._possible(logits, 0), 0), self.parameters)

    def given(self, token: int, logits: Floats) -> Choice:
        """A token that was drawn elsewhere, from its row of logits, as a choice."""
        return self._choice(token, self._possible(logits, 0))

    def observed(self, token: int, logits: Floats) -> Observed:
        """A token that stands at this place of an observed text, for noise that explains it. Raises PromptError where
        it could not be drawn here.
        """
        return observe(self._scores(self._possible(logits, 0), 0), self.parameters, token, self.position)

    def number(self, purpose: int) -> float:
        """A number in [0, 1) for the next token, another one for each purpose (from 1 on), none of them that of
        `choose`."""
        return uniform(self.seed ^ purpose << 32, self.stream, self.position)

    def _choice(self, token: int, possible: Floats) -> Choice:
        """With its log-probability where it is asked for. possible: the model's logits."""
        wanted = self.parameters.logprobs
        return Choice(token) if wanted is None else Choice(token, logprob_of(possible, token, wanted))

    def _scores(self, possible: Floats, offset: int) -> Floats:
        """The model's logits with penalties and biases, and −inf for what the grammar forbids. Raises PromptError where
        these leave no token.
        """
        scores = self._adjusted(possible)
        if self.constraint is not None:
            scores = self.constraint.masked(scores)
        if scores is not possible:
            check_scores(scores, self.position + offset)
        return scores

    def _possible(self, logits: Floats, offset: int) -> Floats:
        """The model's logits, −inf for rows that are no token. Raises PromptError where they are no numbers."""
        possible = self.absent.without(logits)
        check_logits(possible, self.position + offset)
        return possible

    def _adjusted(self, logits: Floats) -> Floats:
        options = self.parameters
        if not options.penalised and not options.logit_bias:
            return logits
        scores = logits.copy()
        if self._counts is not None and self._seen is not None:
            if options.repetition_penalty != 1.0:
                factor = options.repetition_penalty
                penalised = np.where(scores > 0, scores / factor, scores * factor)
                scores = np.where(self._seen, penalised, scores)
            scores -= options.frequency_penalty * self._counts
            scores -= options.presence_penalty * (self._counts > 0).astype(np.float32)
        with np.errstate(over="ignore"):
            for token, bias in options.logit_bias.items():
                scores[token] += np.float32(bias)
        return scores


class ForcedSampler(Sampler):
    """Teacher forcing: the first tokens are given; what the model thought of them is still reported. What follows
    them is the model's own.
    """

    def __init__(
        self,
        parameters: SamplingParameters,
        vocabulary_size: int,
        forced: Sequence[int],
        stream: int = 0,
        start: int = 0,
        absent: Absent = NONE_ABSENT,
    ) -> None:
        """forced: token ids of the answer, from position `start` on. Raises PromptError where one lies beyond the
        vocabulary, or is a row that is no token.
        """
        super().__init__(parameters, vocabulary_size, stream, absent)
        check_tokens("forced", forced, vocabulary_size)
        absent.check("forced", forced)
        self._forced = tuple(forced)
        self._start = start

    @property
    def forced(self) -> tuple[tuple[int, ...], int]:
        """The tokens that are given, and the position of the first."""
        return self._forced, self._start

    @property
    def needs_logits(self) -> bool:
        """While tokens are forced: an arg-max would not be the forced one."""
        return self.position - self._start < len(self._forced) or super().needs_logits

    def choose(self, logits: Floats, offset: int = 0) -> Choice:
        """The forced token of this position, with its log-probability where the parameters ask; behind the
        last of them a token like any other. Raises PromptError where the logits are no numbers.
        """
        place = self.position - self._start + offset
        if place >= len(self._forced):
            return super().choose(logits, offset)
        return self._choice(self._forced[place], self._possible(logits, offset))

    def probabilities(self, logits: Floats) -> Weights:
        """All of it on a token that is forced; see Sampler."""
        place = self.position - self._start
        if place >= len(self._forced):
            return super().probabilities(logits)
        chances = np.zeros(self.vocabulary_size)
        chances[self._forced[place]] = 1.0
        return chances


def check_tokens(name: str, tokens: Iterable[int], vocabulary_size: int) -> None:
    """Raise PromptError where a token id lies outside the vocabulary."""
    for token in tokens:
        if not 0 <= token < vocabulary_size:
            raise PromptError(f"{name} names token {token}; the vocabulary ends at {vocabulary_size - 1}")


def logprob_of(logits: Floats, token: int, alternatives: int) -> TokenLogprob:
    """The chosen token's log-probability and the best `alternatives`, itself among them if it is one.

    logits: [vocabulary] fp32; −inf is a token without probability, and no alternative.
    """
    best = float(logits.max())
    normaliser = best + math.log(float(np.exp(logits.astype(np.float64) - best).sum()))
    chosen = float(logits[token]) - normaliser
    if alternatives == 0:
        return TokenLogprob(token, chosen)
    values, ids = largest(logits, min(alternatives, logits.size))
    pairs = zip(values.tolist(), ids.tolist(), strict=True)
    return TokenLogprob(token, chosen, tuple((i, value - normaliser) for value, i in pairs if value > -math.inf))
