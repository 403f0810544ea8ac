"""Dimple: confident decoding. Every place whose guess is sure enough is filled in at once, one at least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from thrifty.card import Card
from thrifty.decoding.canvas import Canvas, DenoisingStrategy, Guesses, Rule
from thrifty.decoding.draft import MOST_ROWS
from thrifty.registry import technique

LAST_TIME = 1e-3  # the schedule's times fall from 1 to this


@technique(
    stage="decoding",
    card=Card(
        title="Dimple (Discrete Diffusion Multimodal Large Language Model with Parallel Decoding)",
        paper="2505.16990",
        year=2025,
        mechanism="A masked-diffusion model fills in all places whose token has a probability above a threshold; where "
        "none has, a schedule says how many of the best are filled in. The prompt's keys and values are cached.",
        claim="passes fall to about a third of the answer's length; +3.9 % over LLaVA-NeXT-7B; caching the prompt is "
        "1.5 to 7 times faster",
        limits=(
            "for masked-diffusion models (model_type Dream); text alone: no images here, and no loader of Dimple-7B",
            (
                "the prompt never sees the answer: exact for a model trained so (letters-diffusion), approximate for "
                "others, as the paper's own cache is"
            ),
            "the first token of an answer comes from the prompt's last row alone and is chosen before any mask",
            (
                "a canvas has at most 63 places, is filled whole, and is followed by another until the answer ends; "
                "one pass more computes the rows that stay, and its last row chooses the token behind the canvas"
            ),
            "thresholds and counts are each sequence's own; the released code pools them over a batch",
            (
                "a pass in which places are sure takes one step of the schedule, as one in which none is; whether the "
                "released code does so was not confirmed"
            ),
            "the rule 'margin' is the distance of the two best probabilities, 'entropy' the entropy, as in Dream",
            "no penalties, grammars, forced tokens, logits or sessions: refused by name",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class Dimple(DenoisingStrategy):
    """length: places of a canvas. threshold: probability above which places are filled in together (the paper's p); 0:
    the schedule alone. steps: of the schedule; None: one a place. rule: which places the schedule fills in first.
    """

    length: Annotated[int, Field(ge=1, le=MOST_ROWS - 1)] = 12  # as letters-diffusion was trained
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.95
    steps: Annotated[int, Field(ge=1, le=MOST_ROWS - 1)] | None = None
    rule: Rule = "confidence"

    @property
    def longest(self) -> int:
        """See DenoisingStrategy."""
        return self.length

    def begin(self) -> Canvas:
        """See DenoisingStrategy."""
        return Canvas.empty(self.length)

    def refine(self, canvas: Canvas, guesses: Guesses, room: int) -> Canvas:
        """Confident decoding (§3.3). canvas.clock: the step of the schedule."""
        masked, steps = canvas.masked, self.steps or self.length
        if self.threshold:
            sure = masked[guesses.confidence[masked] > self.threshold]
            if len(sure):
                return canvas.filled(guesses, sure, canvas.clock + 1)
        clock, count = scheduled(len(masked), canvas.clock, steps)
        return canvas.filled(guesses, guesses.best(masked, count, self.rule), clock)


def scheduled(masked: int, clock: int, steps: int) -> tuple[int, int]:
    """(the step behind the one that fills in something, how many of `masked` places it fills in), from step `clock` on.

    Times fall evenly from 1 to 1e-3 in `steps` steps; step i from t to s fills in int(masked · (1 − s/t)), the last one
    all that is left. Steps that would fill in nothing are passed over.
    """
    times = np.linspace(1.0, LAST_TIME, steps + 1)
    for step in range(clock, steps - 1):
        count = int(masked * (1.0 - times[step + 1] / times[step]))
        if count:
            return step + 1, count
    return steps, masked
