"""Answers under decoding strategies: their speed side by side, their tokens, and whether samples are the model's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from thrifty.claims.harness.parts import Bar, Part, exactly
from thrifty.claims.harness.statistics import Scores, mean_interval
from thrifty.decoding.drawing import distribution
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.evaluation.text import held_out

Decoding = Sequence[Mapping[str, Any]]
PER_ROUND = 2  # prompts
ALIKE = 0.3  # nats a token: samples of another distribution than the model's are further from its entropy


@dataclass(frozen=True)
class Answer:
    """tokens: chosen ones. rows: of each step behind the first token, where a strategy drafted; seconds: of all."""

    tokens: list[int]
    rows: tuple[int, ...]
    seconds: float

    @property
    def steps(self) -> int:
        """Behind the first token; plain decoding has one a token."""
        return len(self.rows) or len(self.tokens) - 1

    @property
    def tokens_a_step(self) -> float:
        """1 for plain decoding."""
        return (len(self.tokens) - 1) / max(1, self.steps)


def answer(engine: Engine, prompt: Sequence[int], decoding: Decoding, tokens: int, salt: str = "") -> Answer:
    """Decode an answer alone, greedily, as `Handle.result` does. salt: of those that share what is kept of answers.
    Raises what the engine raises.
    """
    parameters = SamplingParameters(max_tokens=tokens, ignore_eos=True)
    handle = engine.submit(Request(prompt=prompt, sampling=parameters, decoding=decoding, salt=salt))
    while not handle.usage.generated_tokens:
        engine.step()
    with _rows_noted(engine) as rows:
        start = time.perf_counter()
        tokens_chosen = handle.result().token_ids
        seconds = time.perf_counter() - start
    return Answer(tokens_chosen, tuple(rows), seconds)


@contextmanager
def _rows_noted(engine: Engine) -> Iterator[list[int]]:
    """How many rows each step of a sequence that drafts has, while it lasts."""
    costs, rows = engine.memory.drafts.costs, list[int]()
    note = costs.note

    def noted(count: int, seconds: float) -> None:
        rows.append(count)
        note(count, seconds)

    vars(costs)["note"] = noted
    try:
        yield rows
    finally:
        del vars(costs)["note"]


class Sides:
    """Strategies that answer the same prompts, `PER_ROUND` of them a round. No prompt comes twice, and a side has its
    name as salt, so that nothing that is kept of a judged answer drafts it.
    """

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]], tokens: int, **sides: Decoding) -> None:
        """prompts: at least PER_ROUND for each round. tokens: of an answer."""
        self.answers: dict[str, list[Answer]] = {name: [] for name in sides}
        self._engine, self._prompts, self._tokens = engine, prompts, tokens
        self.rates: dict[str, Callable[[], float]] = {
            name: self._rate(name, decoding) for name, decoding in sides.items()
        }

    def _rate(self, name: str, decoding: Decoding) -> Callable[[], float]:
        rounds = count()

        def rate() -> float:
            first = next(rounds) * PER_ROUND
            prompts = self._prompts[first : first + PER_ROUND]
            made = [answer(self._engine, prompt, decoding, self._tokens, name) for prompt in prompts]
            self.answers[name] += made
            return sum(len(own.tokens) - 1 for own in made) / sum(own.seconds for own in made)

        return rate

    def tokens_a_step(self, name: str) -> Scores:
        """Of each answer of a side."""
        return per_prompt([own.tokens_a_step for own in self.answers[name]])

    def same(self, ours: str, plain: str) -> Part:
        """The gate "nothing is lost": every token of every answer is plain decoding's."""
        pairs = [
            (left == right)
            for mine, other in zip(self.answers[ours], self.answers[plain], strict=True)
            for left, right in zip(mine.tokens, other.tokens, strict=True)
        ]
        return exactly("tokens that are plain decoding's, greedy", sum(pairs) / len(pairs), Bar(1.0))


def per_prompt(values: Sequence[float]) -> Scores:
    """Figures of prompts, each of which is a context of its own."""
    return Scores(tuple(values), tuple(f"prompt {place}" for place in range(len(values))), bounded=False)


def quotes(tokenizer: Any, prompts: int, length: int, begun: int, seed: int) -> list[list[int]]:
    """Prompts that quote: `length` tokens of prose, and the first `begun` of them again."""
    text = held_out(tokenizer, prompts * length + 1, seed)[1:]
    return [[*part, *part[:begun]] for part in (text[at * length : (at + 1) * length] for at in range(prompts))]


def shuffled(prompts: Sequence[Sequence[int]], begun: int, seed: int) -> list[list[int]]:
    """The same prompts with the quoted text in random order: nothing in it is what will be said."""
    random = np.random.default_rng(seed)
    return [[*random.permutation(prompt[:-begun]).tolist(), *prompt[-begun:]] for prompt in prompts]


def excess(
    engine: Engine, prompts: Sequence[Sequence[int]], decoding: Decoding, tokens: int, temperature: float = 0.8
) -> Scores:
    """log p + entropy of each sampled token behind the first, p the model's distribution at its place: 0 on average for
    samples of p, and else not but by chance.
    """
    values: list[float] = []
    clusters: list[str] = []
    for place, prompt in enumerate(prompts):
        parameters = SamplingParameters(max_tokens=tokens, ignore_eos=True, temperature=temperature, seed=place)
        handle = engine.submit(Request(prompt=prompt, sampling=parameters, decoding=decoding, logits=True))
        for number, event in enumerate(handle):
            if number and event.token is not None and event.logits is not None:
                chances = distribution(event.logits, parameters)
                entropy = -float(np.sum(chances * np.log(np.maximum(chances, 1e-300))))
                values.append(math.log(max(chances[event.token], 1e-300)) + entropy)
                clusters.append(f"prompt {place}")
    return Scores(tuple(values), tuple(clusters), bounded=False)


def drawn_alike(scores: Scores) -> tuple[Part, Part]:
    """The gates "samples are the model's": `excess` is neither above nor below 0 by more than `ALIKE`."""
    interval = mean_interval(scores)
    return (
        Part("samples' log p beyond its expectation, not below", interval, Bar(-ALIKE), unit="nats"),
        Part("samples' log p beyond its expectation, not above", interval, Bar(ALIKE, at_least=False), unit="nats"),
    )
