"""LaViDa: keeping the prompt's keys makes answers faster, and half the passes keep most of the quality."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.letters import MODEL, Letters, asked, lettered
from thrifty.claims.harness.parts import Bar, Part, kept, times
from thrifty.claims.harness.statistics import advantage
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import Request
from thrifty.evaluation.text import held_out
from thrifty.models.loading import load

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.letters import Item
    from thrifty.models.model import Model

PLACES, PASSES = 12, 6  # of a canvas
TIMED, PROMPT = "smollm2-135m", 512  # whose sizes and weights are timed; tokens of the prompt
HEADLINE = "as fast as passes over the whole"
FASTER, HALF = 3.3, 0.947  # 6.65 s over 2.01 s; CIDEr 104.4 over 110.2


class LavidaClaim(Claim):
    """Time on the sizes of a model of 135 million weights, quality on the one that was trained to fill in masks."""

    paper = "6.65 s a caption become 2.01 s (CIDEr 110.2 and 107.8), with half the passes 1.32 s (104.4)"
    source = "arXiv:2505.16839, tables of the prefix cache (by the project's notes of it)"
    rule = "an answer at least 3.3 times as fast with the prompt's keys kept; exact answers at half the passes 94.7 %"
    models = (MODEL,)
    minutes = 2.0

    def measure(self, context: Context) -> Measurement:
        if context.model.config.mask_id is None:
            return Measurement.untestable(HEADLINE, f"a model that fills in masks, such as {MODEL}")
        items = asked(context.budget.answers, context.seed)
        with closing(context.fresh(context.model)) as engine:
            every, half, once = (_answers(engine, items, ratio) for ratio in (1.0, 0.5, 1 / PLACES))
        sized = load(TIMED)
        prompt = held_out(sized.require_tokenizer(), PROMPT)
        context.say(f"{PASSES} passes behind {PROMPT} tokens, whose keys are kept and not")
        with closing(context.fresh(_masked(sized), chunk=2 * PROMPT)) as engine:
            made = context.rounds({"whole": lambda: _whole(engine, prompt), "kept": lambda: _kept(engine, prompt)})
        return Measurement(
            headline=times(HEADLINE, made["whole"], made["kept"], Bar(FASTER), "3.3 ×"),
            parts=(
                times("passes at half the schedule, of all", half.passes, every.passes, None),
                Part("complementary masks", missing="a second training, with masks drawn anew (`--independent`)"),
            ),
            gates=(
                kept("exact answers at half the passes, of one place a pass's", half.right, every.right, Bar(HALF)),
            ),
            controls=(Control("all places in one pass", "lose", advantage(once.right, every.right)),),
            counts={"questions": len(items), "prompt tokens": PROMPT, "passes": PASSES},
            setting=(
                f"time: the sizes and weights of {TIMED} with a token for a mask, its answers unused, canvases "
                f"of {PLACES} places; quality: {context.name}, in which no prompt sees its answer: keeping keys "
                "changes nothing. The paper: images of about a thousand tokens, 8 billion weights"
            ),
        )


def _answers(engine: Engine, items: Sequence[Item], ratio: float) -> Letters:
    return lettered(engine, items, [{"technique": "lavida", "length": PLACES, "ratio": ratio}])


def _masked(model: Model) -> Model:
    """The model as one that fills in masks; its first token stands for them."""
    return dataclasses.replace(model, config=dataclasses.replace(model.config, mask_id=0))


def _kept(engine: Engine, prompt: Sequence[int]) -> float:
    """Seconds of an answer: the prompt once, then passes over the canvas."""
    decoding = [{"technique": "lavida", "length": PLACES, "ratio": PASSES / PLACES}]
    sampling = SamplingParameters(max_tokens=PLACES + 2, ignore_eos=True)
    began = time.perf_counter()
    engine.submit(Request(prompt=prompt, sampling=sampling, decoding=decoding)).result()
    return time.perf_counter() - began


def _whole(engine: Engine, prompt: Sequence[int]) -> float:
    """Seconds of as many passes over prompt and canvas, each from the beginning."""
    sampling = SamplingParameters(max_tokens=1, ignore_eos=True)
    began = time.perf_counter()
    for _ in range(PASSES + 1):
        engine.submit(Request(prompt=[*prompt, *prompt[: PLACES + 1]], sampling=sampling)).result()
    return time.perf_counter() - began
