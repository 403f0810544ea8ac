"""ZeroQuant: whether int8 weights and token-wise int8 activations cost nothing, and what distillation saves."""

from __future__ import annotations

import math

from thrifty import extras
from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, Part, ahead, exactly
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.scores.passages import SCORED
from thrifty.claims.harness.statistics import advantage
from thrifty.claims.harness.weights import MINIMUM, PREFIX, Compressed, WeightScores

OURS = {"technique": "zeroquant"}
MIXED = OURS | {"mlp_bits": 4}
STEPS, BATCH, LAYERS = 20, 2, 4  # of distillation, in the claim's time: the paper's is 100 steps of 32 in every layer
RISE = math.log(19.47 / 19.37)  # of a token's loss, in nats
HALF = 0.51  # of bf16's bytes: 8 bits and a scale a row
HEADLINE = "loss of a token below the unrounded weights', weights and activations in 8 bits"


class ZeroquantClaim(Claim):
    """Losses of the off-grid view in W8A8 and W4/8A8, the latter with and without distillation of its first layers."""

    paper = "GPT-2, WikiText-2 perplexity: 19.37 in fp16, 19.47 in W8A8 (+ 0.5 %); W4/8A8 needs distillation"
    source = "the authors' tutorial of DeepSpeed's compression; arXiv:2206.01861, section 4 and abstract"
    rule = "perplexity rises by at most 0.5 %, which is 0.005 nats a token"
    minutes = 3.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        setting = (
            f"off-grid view, one scale a row of weights and of activations; {SCORED} tokens of prose after {PREFIX}; "
            f"distilled: the first {LAYERS} layers in W4/8A8, {STEPS} steps of {BATCH} sequences at 1e-4"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours, mixed, worst = score(OURS), score(MIXED), score(MINIMUM)
        exact = score({"technique": "rtn", "bits": 8})
        return Measurement(
            headline=ahead(HEADLINE, ours.losses, full.losses, Bar(-RISE), "-0.005 nats"),
            parts=(
                ahead("loss below the unrounded weights' in W4/8A8, undistilled", mixed.losses, full.losses, None),
                _distilled(score),
            ),
            gates=(exactly("bytes of the linears in W8A8", ours.nbytes / full.nbytes, Bar(HALF, at_least=False)),),
            controls=(
                Control("rtn of 4 bits without minimum, embedding too", "lose", advantage(worst.losses, full.losses)),
                Control("8 bits with a scale every 32 columns", "hold", advantage(exact.losses, full.losses)),
            ),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts},
            setting=setting,
            told=f"{ours.bits:.2f} bits a weight in W8A8, {mixed.bits:.2f} in W4/8A8, scales included",
        )


def _distilled(score: WeightScores) -> Part:
    """What distillation saves of the loss that W4/8A8 in the first layers costs."""
    name, first = "loss that distillation saves in W4/8A8 of the first layers", {"layers": list(range(LAYERS))}
    if not extras.is_there("torch"):
        return Part(name, missing="torch, which distillation trains with")
    plain: Compressed = score(MIXED | first)
    learned = score(MIXED | first | {"steps": STEPS, "batch": BATCH, "learning_rate": 1e-4})
    return ahead(name, learned.losses, plain.losses)
