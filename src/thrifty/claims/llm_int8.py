"""LLM.int8(): whether int8 weights and activations cost nothing once outlier features are multiplied apart."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.scores.passages import SCORED
from thrifty.claims.harness.statistics import advantage
from thrifty.claims.harness.weights import PREFIX, WeightScores
from thrifty.formats.linear import PackedLinear
from thrifty.weights.groups import groups, rescaled
from thrifty.weights.technique import exchange

if TYPE_CHECKING:
    from thrifty.models.model import Model

OURS = {"technique": "llm-int8"}
ALONE = OURS | {"threshold": 0}
NEAR = {"technique": "rtn", "bits": 8, "group": 32}
PLANTED, FACTOR, SEED = 3, 16.0, 8  # channels behind each norm, and how much larger they are made
RISE = math.log(1.01)  # of a token's loss, in nats
HALF = 0.51  # of bf16's bytes: 8 bits and a scale a row
HEADLINE = "loss of a token below the unrounded weights'"


class LlmInt8Claim(Claim):
    """Losses of the off-grid view, and of the same function with outlier features planted behind its norms."""

    paper = "C4 perplexity of the 13B model: 12.45 in fp32, 12.45 with LLM.int8(); more with int8 alone"
    source = "arXiv:2208.07339, abstract and table 1 (figures as others quote them)"
    rule = "perplexity rises by at most 1 %, which is 0.010 nats a token"
    minutes = 2.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        setting = (
            f"off-grid view, threshold 6; {SCORED} tokens of prose after {PREFIX}; planted: {PLANTED} channels behind "
            f"each norm {FACTOR:g} times as large, their weights as much smaller, held to a rise of 2 % (no "
            "figure of the paper, whose models show outliers from 6.7B parameters on)"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours, alone, near = score(OURS), score(ALONE), score(NEAR)
        score.view = planted(score.view)
        kept, spoilt = score(OURS), score(ALONE)
        return Measurement(
            headline=ahead(HEADLINE, ours.losses, full.losses, Bar(-RISE), "0 nats"),
            parts=(
                ahead("loss below that of int8 alone", ours.losses, alone.losses),
                ahead("with planted outliers, below the unrounded weights'", kept.losses, full.losses, Bar(-2 * RISE)),
            ),
            gates=(
                exactly("bytes of the linears", ours.nbytes / full.nbytes, Bar(HALF, at_least=False)),
                # Without outliers in the model, int8 alone could hold the headline's bar.
                ahead("with planted outliers, below that of int8 alone", kept.losses, spoilt.losses),
            ),
            controls=(
                Control("int8 alone, with planted outliers", "lose", advantage(spoilt.losses, full.losses)),
                Control("8 bits with a scale every 32 columns", "hold", advantage(near.losses, full.losses)),
                Control("int8 alone", "shown", advantage(alone.losses, full.losses)),
            ),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts},
            setting=setting,
            told=f"{ours.bits:.2f} bits a weight, scales included",
        )


def planted(model: Model) -> Model:
    """The same function with a few features that stand out behind every norm: the norm makes them larger, and the
    weights that read them are as much smaller. Linears become plain fp32.
    """
    model = replace(model, linears=dict(model.linears), norms=dict(model.norms), report=list(model.report))
    random = np.random.default_rng(SEED)
    for group in groups(model):
        if group.kind != "norm" or group.layer is None:
            continue
        scale = np.ones(group.width, np.float32)
        scale[random.permutation(group.width)[:PLANTED]] = 1 / FACTOR
        for name, value in rescaled(group, scale):
            if isinstance(value, PackedLinear):
                exchange(model, name, value)
            else:
                model.norms[name] = value
    model.version += f"+planted({PLANTED}x{FACTOR:g})"
    return model
