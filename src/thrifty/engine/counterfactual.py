"""What-if replay: the same noise behind another prompt, another token, another model.

An answer with `noise = "gumbel"` and a seed is replayed by giving both again: with an edited prompt, with a token
replaced (`replaced`), through another model, adapter or recipe. Noise for a text that was not drawn here comes from an
observation: the text is read once behind its prompt (`observation`), and `Hindsight` makes noise of what the model
thought of it. Where the prompt is edited, places are those of the answer: its first token is place 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from thrifty.decoding.noise import GumbelNoise, Observed
from thrifty.decoding.sampling import Sampler
from thrifty.decoding.sampling_parameters import AtMost
from thrifty.decoding.services import ModelFacts
from thrifty.engine.answer import Event
from thrifty.engine.request import Request
from thrifty.errors import PromptError

MOST_BYTES = 128 << 20
"""Of the rows that an observed text may take: they are held until the replay is over."""


def replaced(request: Request, answer: Sequence[int], place: int, token: int) -> Request:
    """The request that answers with `token` at a place of its answer, and goes on from there by the same noise.

    answer: the tokens of the factual answer, as many as `place` at least. place: 0 is the first. Raises PromptError
    where the answer has no such place, or the request leaves no room behind it.
    """
    if not 0 <= place <= len(answer):
        raise PromptError(f"place = {place}, but the answer has {len(answer)} tokens: use 0 to {len(answer)}")
    forced = (*answer[:place], token)
    limit = request.sampling.max_tokens
    if limit is None:
        raise PromptError("a replaced token needs max_tokens as a number: None leaves the answer's length open")
    if limit < len(forced) and not isinstance(limit, AtMost):
        raise PromptError(f"max_tokens = {limit} ends before place {place}, where a token is replaced; use more")
    return dataclasses.replace(request, forced=forced, free=max(0, limit - len(forced)))


def observation(request: Request, answer: Sequence[int], facts: ModelFacts) -> Request:
    """The request whose events `Hindsight` reads: the answer is read behind its prompt, with all logits.

    Raises PromptError where there is nothing to observe, or the options tell nothing about noise.
    """
    sampling = request.sampling
    if not answer:
        raise PromptError("the observed answer is empty; give at least 1 token of it")
    if sampling.greedy:
        raise PromptError(
            f"temperature = {sampling.temperature}, top_k = {sampling.top_k}: a greedy answer has no noise to look "
            "for; use the temperature that the text was drawn with, above 0"
        )
    if sampling.grammar is not None:
        raise PromptError("an observed answer comes whatever a grammar says; leave the grammar out")
    nbytes = 4 * facts.vocabulary_size * len(answer)
    if nbytes > MOST_BYTES:
        most = MOST_BYTES // (4 * facts.vocabulary_size)
        raise PromptError(
            f"an observed answer of {len(answer)} tokens takes {nbytes >> 20} MB of scores; observe its first {most} "
            "tokens: later places get fresh noise"
        )
    return dataclasses.replace(
        request,
        sampling=dataclasses.replace(sampling, noise=None, logprobs=None, stop=()),
        forced=tuple(answer),
        free=0,
        samples=1,
        logits=True,
    )


class Hindsight:
    """Noise of an observed answer from the events of its `observation`."""

    def __init__(self, request: Request, facts: ModelFacts) -> None:
        """request: the observation."""
        self._sampler = Sampler(request.sampling, facts.vocabulary_size, absent=facts.absent)
        self._sampler.observe_prompt(request.token_ids)
        self._rows: dict[int, Observed] = {}

    def add(self, event: Event) -> None:
        """Read one event. Raises PromptError where its token could not have been drawn with the request's options."""
        if event.token is None or event.logits is None:
            return
        self._rows[self._sampler.position] = self._sampler.observed(event.token, event.logits)
        self._sampler.commit(event.token)

    def noise(self) -> GumbelNoise:
        """The noise of all places that were read."""
        return GumbelNoise(dict(self._rows))


def hindsight(request: Request, events: Iterable[Event], facts: ModelFacts) -> GumbelNoise:
    """All events of an observation as noise."""
    seen = Hindsight(request, facts)
    for event in events:
        seen.add(event)
    return seen.noise()
