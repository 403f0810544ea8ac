"""DAEDAL: a canvas that grows until the model is sure where the answer ends, and where a place is too narrow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from thrifty.arrays import Integers
from thrifty.card import Card
from thrifty.decoding.canvas import Canvas, DenoisingStrategy, Guesses
from thrifty.decoding.draft import MOST_ROWS
from thrifty.errors import RecipeError
from thrifty.registry import technique

GROWING, FILLING = 0, 1  # a canvas's clock


@technique(
    stage="decoding",
    card=Card(
        title="DAEDAL (Beyond Fixed: Variable-Length Denoising for Diffusion Large Language Models)",
        paper="2508.00819",
        year=2025,
        mechanism="Before anything is filled in, masks are added while the model is not sure that the canvas's tail is "
        "behind the answer; while it is filled in, the least sure place becomes several masks.",
        claim="as good as or better than the best fixed length, on four sets of maths and code with LLaDA-8B and 1.5, "
        "from one short first length",
        limits=(
            "for masked-diffusion models (model_type Dream); text alone",
            (
                "a canvas has at most 63 places, the paper's 2048: lengths, window and growth are less by default "
                "(8 masks at first, 4 more each time, a tail of 8; the paper: 64, 8, 32), thresholds are the paper's"
            ),
            "behind a canvas that is full and has no end token follows another one",
            "the released code adds 16 end tokens after the first stage; here none",
            (
                "predictions are shifted: the first token of an answer is chosen from the prompt, before the length "
                "is known; places that are filled already count by the probability of an end token in front of them"
            ),
            "the prompt's keys and values are cached; the paper runs the whole sequence in every pass",
            "one insertion a pass; random numbers belong to places, so what an insertion moves is drawn anew",
            "no penalties, grammars, forced tokens, logits or sessions: refused by name",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class Daedal(DenoisingStrategy):
    """initial: masks at first. growth: masks added at a time, and what an expanded place becomes. length: the most
    places. window: places of the tail that are asked for an end. enough: confidence of an end at which the first stage
    stops. sure, unsure: probabilities above which places are filled in, and below which the least sure one expands.
    tail: confidence of an end under which places expand. block: places that are filled in together, from the left.
    """

    initial: Annotated[int, Field(ge=1, le=MOST_ROWS - 1)] = 8
    growth: Annotated[int, Field(ge=1, le=MOST_ROWS - 2)] = 4
    length: Annotated[int, Field(ge=1, le=MOST_ROWS - 1)] = 63
    window: Annotated[int, Field(ge=1, le=MOST_ROWS - 1)] = 8
    enough: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    sure: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9
    unsure: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    tail: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9
    block: Annotated[int, Field(ge=1, le=MOST_ROWS - 1)] = 32

    def __post_init__(self) -> None:
        if self.initial > self.length:
            raise RecipeError(
                f"daedal: initial = {self.initial} is above length = {self.length}, the most that it may grow to; use "
                "less, or a greater length"
            )

    @property
    def longest(self) -> int:
        """See DenoisingStrategy."""
        return self.length

    def begin(self) -> Canvas:
        """See DenoisingStrategy."""
        return Canvas.empty(self.initial)

    def refine(self, canvas: Canvas, guesses: Guesses, room: int) -> Canvas:
        """Stage 1 (§3.2): masks behind the canvas. Stage 2 (§3.3): places are filled in, one may expand."""
        certainty = end_confidence(guesses, self.window)
        length = len(canvas.choices)
        if canvas.clock == GROWING and certainty < self.enough and length < room:
            more = min(self.growth, room - length)
            return Canvas((*canvas.choices, *[None] * more), canvas.passes + 1, GROWING)
        masked = canvas.masked
        here = masked[masked < masked[0] - masked[0] % self.block + self.block]
        chosen = here[guesses.confidence[here] > self.sure]
        if not len(chosen):
            chosen = here[[int(np.argmax(guesses.confidence[here]))]]
        filled = canvas.filled(guesses, chosen, FILLING)
        return self._expanded(filled, guesses, here, room) if certainty < self.tail else filled

    def _expanded(self, canvas: Canvas, guesses: Guesses, here: Integers, room: int) -> Canvas:
        """With the least sure mask of the block widened, where it is unsure and there is room."""
        left = [place for place in here if canvas.choices[place] is None]
        if not left:
            return canvas
        place = min(left, key=lambda own: float(guesses.confidence[own]))
        more = min(self.growth - 1, room - len(canvas.choices))
        if guesses.confidence[place] >= self.unsure or more < 1:
            return canvas
        choices = (*canvas.choices[:place], *[None] * more, *canvas.choices[place:])
        return Canvas(choices, canvas.passes, canvas.clock)


def end_confidence(guesses: Guesses, window: int) -> float:
    """Σ P(end) over those of the last `window` places at which an end token is the likeliest, over `window` (§3.2);
    over the canvas's length where that is less.
    """
    ends = sorted(guesses.ends)
    tail = guesses.probabilities[-window:]
    certain = np.isin(tail.argmax(axis=1), ends)
    return float(tail[certain][:, ends].sum()) / min(window, len(tail))
