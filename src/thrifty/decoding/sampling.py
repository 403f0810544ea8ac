"""Sampling: one row of logits in, one token out, independent of every other row.

Randomness is counter-based: the draw for a token is a pure function of (seed, stream, position). So a
sample does not depend on its neighbours in a batch, on the order of steps, or on a pause in between.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty import arrays
from thrifty.arrays import Floats, Integers
from thrifty.decoding.option_values import as_integer, biases, flag, number, texts, token_ids, whole
from thrifty.decoding.possible import NONE_ABSENT, Absent, check_logits, check_scores
from thrifty.errors import PromptError, nearest

MAXIMUM_LOGPROBS = 20
NUCLEUS_PROBE = 256  # candidates sorted first
SECOND_PROBE = 2048  # candidates sorted where the first hold less than top_p; the whole vocabulary where these do too
BLOCK = 64  # scores of which only the largest is compared, until it is known which blocks matter
MASK = (1 << 64) - 1

Flags = npt.NDArray[np.bool_]
Weights = npt.NDArray[np.float64]


class AtMost(int):
    """A bound on an answer's tokens that nobody asked for: it shrinks to the room there is."""


DEFAULT_MAX_TOKENS = AtMost(256)


@dataclass(frozen=True, kw_only=True)
class SamplingParameters:
    """How tokens are chosen and when to stop.

    Order: repetition, presence and frequency penalties and the logit bias, then temperature, top_k,
    top_p, min_p. temperature: 0 is greedy. top_k: 0 is off. top_p, min_p: probabilities; 1 and 0 are off.
    repetition_penalty (Keskar et al. 2019, §4.1): over prompt and answer, 1 is off. presence_penalty and
    frequency_penalty: subtracted once, or once an occurrence, for tokens of the answer; 0 is off.
    logit_bias: token id to an addition in logit units. seed: None draws one.
    max_tokens: None is as many as the context and the budget have room for, a number must fit; the default is 256,
    or what fits where that is less.
    stop: strings that end the answer (they are not part of the text), one or several. stop_token_ids: likewise for
    ids. Numbers may be NumPy's or torch's; None is no bias and no stop.
    ignore_eos: go on after the model's end-of-sequence ids. logprobs: None for none, or how many
    alternatives to report beside the chosen token's log-probability (0 to 20), in natural log of the
    model's own distribution (before penalties and temperature).

    Raises PromptError naming the field, the value and the accepted range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        values: dict[str, Any] = {
            "temperature": number("temperature", self.temperature, 0.0, math.inf, "0 (greedy) or more"),
            "top_k": whole("top_k", self.top_k, 0, "0 (off) or more"),
            "top_p": number("top_p", self.top_p, 0.0, 1.0, "above 0, at most 1", above=True),
            "min_p": number("min_p", self.min_p, 0.0, 1.0, "0 (off) to 1"),
            "repetition_penalty": number(
                "repetition_penalty", self.repetition_penalty, 0.0, math.inf, "above 0; 1 is off", above=True
            ),
            "presence_penalty": number(
                "presence_penalty", self.presence_penalty, -math.inf, math.inf, "a finite number"
            ),
            "frequency_penalty": number(
                "frequency_penalty", self.frequency_penalty, -math.inf, math.inf, "a finite number"
            ),
            "logit_bias": biases("logit_bias", self.logit_bias),
            "stop": texts("stop", self.stop),
            "stop_token_ids": _stop_token_ids(self.stop_token_ids),
            "ignore_eos": flag("ignore_eos", self.ignore_eos),
        }
        if self.seed is not None:
            values["seed"] = whole("seed", self.seed, 0, "a whole number of at least 0, or None")
        if self.max_tokens is not None and not isinstance(self.max_tokens, AtMost):
            values["max_tokens"] = whole("max_tokens", self.max_tokens, 1, "1 or more, or None for as many as fit")
        if self.logprobs is not None:
            values["logprobs"] = whole(
                "logprobs", self.logprobs, 0, f"0 to {MAXIMUM_LOGPROBS}, or None", MAXIMUM_LOGPROBS
            )
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, **options: Any) -> SamplingParameters:
        """Like the constructor, with a nearest-name error for an unknown option. `greedy=True` is
        temperature 0.
        """
        known = [item.name for item in fields(cls)]
        if flag("greedy", options.pop("greedy", False)):
            if options.get("temperature"):
                raise PromptError(f"greedy=True contradicts temperature = {options['temperature']!r}; give one")
            options["temperature"] = 0.0
        for name in options:
            if name not in known:
                raise PromptError(f"unknown sampling option '{name}'. {nearest(name, [*known, 'greedy'])}")
        return cls(**options)

    @property
    def greedy(self) -> bool:
        """True where the most likely token is always taken."""
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def plain_greedy(self) -> bool:
        """True where the model's own arg-max is the answer and nothing else of the logits is needed."""
        return self.greedy and not self.penalised and not self.logit_bias and self.logprobs is None

    @property
    def penalised(self) -> bool:
        """True where earlier tokens change the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


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
    ) -> None:
        """absent: rows that are no token. Raises PromptError where a bias or stop id lies beyond the vocabulary, or a
        bias is for a row that is no token.
        """
        check_tokens("logit_bias", parameters.logit_bias, vocabulary_size)
        absent.check("logit_bias", parameters.logit_bias)
        check_tokens("stop_token_ids", parameters.stop_token_ids, vocabulary_size)
        self.parameters = parameters
        self.seed = secrets.randbits(63) if parameters.seed is None else parameters.seed
        self.stream = stream
        self.absent = absent
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
        if self._counts is not None and self._seen is not None:
            self._counts[token] += 1
            self._seen[token] = True

    def fork(self, stream: int, parameters: SamplingParameters | None = None, forced: Sequence[int] = ()) -> Sampler:
        """A sampler that has said the same, and draws from its own stream (and seed, with own
        parameters). forced: the tokens that come next.
        """
        chosen = self.parameters if parameters is None else parameters
        if forced:
            other: Sampler = ForcedSampler(
                chosen, self.vocabulary_size, forced, stream, start=self.position, absent=self.absent
            )
        else:
            other = Sampler(chosen, self.vocabulary_size, stream, self.absent)
        if parameters is None or parameters.seed is None:
            other.seed = self.seed
        other.position = self.position
        if other._counts is not None and self._counts is not None:
            other._counts = self._counts.copy()
        if other._seen is not None and self._seen is not None:
            other._seen = self._seen.copy()
        return other

    def choose(self, logits: Floats, offset: int = 0) -> Choice:
        """The token for one row. logits: [vocabulary] fp32, not changed. Does not advance: call `commit`.

        offset: how many uncommitted tokens precede this one (draft positions of a speculative strategy). Raises
        PromptError where the logits are no numbers, or nothing is left to choose.
        """
        options = self.parameters
        logits = self._possible(logits, offset)
        scores = self._adjusted(logits)
        if scores is not logits:
            check_scores(scores, self.position + offset)
        if options.greedy:
            token = int(scores.argmax())
        else:
            token = draw(scores, options, uniform(self.seed, self.stream, self.position + offset))
        if options.logprobs is None:
            return Choice(token)
        return Choice(token, logprob_of(logits, token, options.logprobs))

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
    def forces(self) -> bool:
        """Whether the next token is given."""
        return self.position - self._start < len(self._forced)

    @property
    def needs_logits(self) -> bool:
        """While tokens are forced: an arg-max would not be the forced one."""
        return self.forces or super().needs_logits

    def choose(self, logits: Floats, offset: int = 0) -> Choice:
        """The forced token of this position, with its log-probability where the parameters ask; behind the
        last of them a token like any other. Raises PromptError where the logits are no numbers.
        """
        place = self.position - self._start + offset
        if place >= len(self._forced):
            return super().choose(logits, offset)
        token = self._forced[place]
        logits = self._possible(logits, offset)
        if self.parameters.logprobs is None:
            return Choice(token)
        return Choice(token, logprob_of(logits, token, self.parameters.logprobs))


def check_tokens(name: str, tokens: Iterable[int], vocabulary_size: int) -> None:
    """Raise PromptError where a token id lies outside the vocabulary."""
    for token in tokens:
        if not 0 <= token < vocabulary_size:
            raise PromptError(f"{name} names token {token}; the vocabulary ends at {vocabulary_size - 1}")


def uniform(seed: int, stream: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments only (SplitMix64's finaliser, Steele et al. 2014,
    chained).
    """
    state = _mix(seed & MASK)
    state = _mix(state ^ _mix((stream + 0x5851F42D4C957F2D) & MASK))
    state = _mix(state ^ _mix((position + 0x14057B7EF767814F) & MASK))
    return (state >> 11) / float(1 << 53)


def draw(scores: Floats, options: SamplingParameters, number: float) -> int:
    """Inverse-CDF sampling after temperature, top_k, top_p and min_p. scores: [vocabulary] fp32; number:
    [0, 1).
    """
    unfiltered = options.top_k in (0, scores.size) and options.top_p == 1.0 and options.min_p == 0.0
    if unfiltered:
        return _inverse(_weights(scores, float(scores.max()), options), number)
    weights, ids = _filtered(scores, options)
    return int(ids[_inverse(weights, number)])


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


def _weights(scores: Floats, best: float, options: SamplingParameters) -> Weights:
    """Unnormalised probabilities in fp64, 1 for the best: a tiny temperature cannot overflow."""
    with np.errstate(over="ignore"):
        weights: Weights = np.exp((scores.astype(np.float64) - best) / options.temperature)
    return weights


def _inverse(weights: Weights, number: float) -> int:
    cumulative = np.cumsum(weights)
    place = int(np.searchsorted(cumulative, number * float(cumulative[-1]), side="right"))
    if place == weights.size:  # the product was rounded up to the whole: the last token that has a weight
        place = int(np.searchsorted(cumulative, cumulative[-1]))
    return place


def _filtered(scores: Floats, options: SamplingParameters) -> tuple[Weights, Integers]:
    """The weights that pass top_k, top_p and min_p, falling, and their ids. Sorts only as far as it
    must.
    """
    size = scores.size
    limit = min(options.top_k, size) or size
    width = limit if options.top_k else min(limit, NUCLEUS_PROBE)
    total = None
    if not options.top_k and options.top_p < 1.0:
        total = float(_weights(scores, float(scores.max()), options).sum())
    while True:
        values, ids = largest(scores, width)
        weights = _weights(values, float(values[0]), options)
        keep = _kept(weights, float(weights.sum()) if total is None else total, options)
        if keep < width or width == limit:
            return weights[:keep], ids[:keep]
        width = min(limit, SECOND_PROBE) if width < SECOND_PROBE else limit


def largest(scores: Floats, count: int) -> tuple[Floats, Integers]:
    """The `count` largest of scores [n], falling, of equal ones the first, and their places. Faster than a sort.

    No fewer than `count` scores are as large as the count-th largest of the blocks' maxima: what is less is left out.
    """
    blocks = scores.size // BLOCK
    if count < blocks:
        maxima = scores[: blocks * BLOCK].reshape(blocks, BLOCK).max(axis=1)
        bound = np.partition(maxima, blocks - count)[blocks - count]
        places = np.flatnonzero(scores >= bound)
        values = scores[places]
        order = arrays.largest(values, count)
        return values[order], places[order]
    if count < scores.size:
        bound = np.partition(scores, scores.size - count)[scores.size - count]
        places = np.flatnonzero(scores >= bound)
        order = arrays.largest(scores[places], count)
        return scores[places[order]], places[order]
    order = arrays.largest(scores, count)
    return scores[order], order


def _kept(weights: Weights, total: float, options: SamplingParameters) -> int:
    """How many of the falling weights stay: the fewest that hold top_p of `total`, none below min_p of
    the best.
    """
    keep = weights.size
    if options.top_p < 1.0:
        keep = min(keep, int(np.searchsorted(np.cumsum(weights), options.top_p * total)) + 1)
    if options.min_p > 0.0:
        keep = min(keep, int(np.count_nonzero(weights >= options.min_p)))
    return max(1, keep)


def _stop_token_ids(value: Any) -> tuple[int, ...]:
    """Token ids from a collection of them, one of them, or None."""
    if value is None:
        return ()
    alone = as_integer(value)
    if alone is not None:
        value = (alone,)
    elif isinstance(value, set | frozenset):
        value = tuple(value)
    ids = token_ids("stop_token_ids", value)
    for token in ids:
        whole("stop_token_ids", token, 0, "token ids of at least 0")
    return ids


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)
