"""ISS: an LSTM that loses hidden units while it trains computes faster, at the perplexity of the full one."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

from thrifty import extras
from thrifty.arrays import Integers
from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly, times
from thrifty.claims.harness.statistics import Scores, advantage
from thrifty.errors import RecipeError
from thrifty.evaluation.text import prose
from thrifty.training.iss.groups import living, random_units, with_units
from thrifty.training.iss.lstm import LSTM
from thrifty.training.iss.recipe import Options, Text

LENGTH, PASSAGES, TIMED = 128, 64, 2000  # characters of a passage, how many are scored, tokens of a timing
SLACK, FASTER = -0.01, 1.5  # a hundredth of a nat; the least speed-up of a token


class ISSClaim(Claim):
    """Three trainings on one text: with the lasso, without, and without at the sizes that the lasso found."""

    paper = "two layers of 1500 LSTM units become 373 and 315: 10.59 times faster at no loss of perplexity"
    source = "arXiv:1709.05027, abstract and table 1 (Penn Treebank)"
    rule = "a token at least 1.5 times as fast, at a loss of held-out text that is at most 0.01 nats higher"
    models = ("recall-2m",)
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        text, options = Text.of(prose()), Options(seed=context.seed)
        passages = text.passages(LENGTH, PASSAGES)
        full = _trained(context, text, replace(options, strength=0.0))
        sparse = _trained(context, text, options)
        try:
            small = with_units(sparse, living(sparse))
        except RecipeError as error:
            return Measurement(exactly("times as fast", 0.0, Bar(FASTER), "times"), told=f"nothing is left: {error}")
        same = _trained(context, text, replace(options, strength=0.0, hidden=small.hidden))
        random = with_units(full, random_units(full, small.hidden, context.seed))
        score = partial(_losses, passages=passages, seed=context.seed)
        base, ours = score(full), score(small)
        made = context.rounds({"small": partial(_rate, small, text), "full": partial(_rate, full, text)})
        return Measurement(
            headline=times("times as fast", made["small"], made["full"], Bar(FASTER), "10.59 ×"),
            parts=(
                exactly("multiply-adds of a token", small.multiply_adds / full.multiply_adds, None),
                ahead("loss below that of the same sizes from scratch", ours, score(same), None),
            ),
            gates=(ahead("loss below that of all units", ours, base, Bar(SLACK)),),
            controls=(
                Control("as many random units of the full one", "lose", advantage(score(random), base)),
                Control("groups of zeros still there", "hold", advantage(score(sparse), ours)),
            ),
            counts={"scored tokens": len(ours), "passages": ours.contexts, "steps": options.steps},
            setting=(
                f"an LSTM of characters of its own on the package's prose, {options.steps} steps of {options.batch} × "
                f"{options.length}, λ {options.strength:g}; {context.name} is not used; products of NumPy"
            ),
            told=f"units {list(full.hidden)} became {list(small.hidden)}",
        )


def _trained(context: Context, text: Text, options: Options) -> LSTM:
    extras.require_torch("claim 'iss'")
    from thrifty.training.iss.training import train_lstm

    context.say(f"an LSTM of {list(options.hidden)} units, λ {options.strength:g}, {options.steps} steps")
    return train_lstm(text, options)


def _losses(model: LSTM, passages: Integers, seed: int) -> Scores:
    """A loss a token; the passage is the cluster."""
    rows = [model.losses(passage) for passage in passages]
    values = tuple(float(value) for row in rows for value in row)
    clusters = tuple(f"{seed}/{place}" for place, row in enumerate(rows) for _ in row)
    return Scores(values, clusters, higher=False, bounded=False)


def _rate(model: LSTM, text: Text) -> float:
    """Tokens a second, one at a time."""
    began = time.perf_counter()
    model.logits(text.held_out[:TIMED])
    return min(TIMED, len(text.held_out)) / (time.perf_counter() - began)
