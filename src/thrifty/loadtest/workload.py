"""What is asked of a server: how many prompts, how long, and what they share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.loadtest.api import Endpoint
from thrifty.loadtest.errors import LoadError
from thrifty.loadtest.lengths import Lengths, Shape, draw_shapes, repeated
from thrifty.loadtest.prompts import WORDS, Prompt, Scale, beginnings, make_prompts, words

PROBES = (64, 256)
"""Words of the two prompts by which a server says what words weigh."""

PROBE_ANSWER = 8


@dataclass(frozen=True)
class Workload:
    """The prompts of a load. requests: how many. shapes: from a file, instead of `prompt` and `answer`. prefix_tokens,
    prefixes: how long shared beginnings are, 0 for none, and how many there are.
    """

    requests: int
    prompt: Lengths
    answer: Lengths
    shapes: Sequence[Shape] | None = None
    prefix_tokens: int = 0
    prefixes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        shortest = min((shape.prompt for shape in self.shapes), default=0) if self.shapes else self.prompt.low
        if self.prefix_tokens >= shortest:
            raise LoadError(
                f"prompts have {shortest} tokens or more and would share {self.prefix_tokens}; make the shared "
                "beginning shorter or the prompts longer"
            )

    def prompts(self, scale: Scale, trial: int = 0) -> list[Prompt]:
        """The prompts of one trial. Beginnings are the same in all trials; all else is new, so that no server answers
        from what it saw before.
        """
        shared = beginnings(self.prefixes, self.prefix_tokens, scale, random.Random(f"{self.seed} beginnings"))
        chance = random.Random(f"{self.seed} trial {trial}")
        if self.shapes is None:
            shapes = draw_shapes(self.requests, self.prompt, self.answer, chance)
        else:
            shapes = repeated(self.shapes, self.requests, chance)
        return make_prompts(shapes, scale, shared, self.prefix_tokens, chance)


async def weigh(endpoint: Endpoint, workload: Workload) -> Scale:
    """What words weigh in this server's tokens, by two short requests; a token each where it does not tell.

    They warm the server up as well. Raises LoadError where it does not answer, with what it said.
    """
    counted = []
    for count in PROBES:
        text = words(count, random.Random(f"{workload.seed} probe {count}"))
        shared = WORDS[0] if workload.prefix_tokens else ""  # a template may put one of its own in an empty place
        outcome = await endpoint.ask(Prompt(shared, text, 0, PROBE_ANSWER))
        if outcome.status != 200 or (outcome.error and not outcome.prompt_tokens and not outcome.text):
            raise LoadError(f"the server at {endpoint.url} does not answer {endpoint.model!r}: {outcome.error}")
        counted.append((count + bool(shared), outcome.prompt_tokens))
    return Scale.of(*counted) if all(tokens for _, tokens in counted) else Scale()
