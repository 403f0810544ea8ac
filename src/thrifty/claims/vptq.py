"""VPTQ: vectors at about two bits against uniform codes of two bits."""

from __future__ import annotations

import math

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.scores.passages import SCORED
from thrifty.claims.harness.statistics import advantage
from thrifty.claims.harness.weights import PREFIX, WeightScores

OURS = {"technique": "vptq"}
EVEN = {"technique": "gptq", "bits": 2, "group": 128}
NEAREST = {"technique": "rtn", "bits": 2, "group": 128}
RISE = math.log(6.13 / 5.12)  # of a token's loss, in nats
HEADLINE = "loss of a token below the unrounded weights'"


class VptqClaim(Claim):
    """Losses of the off-grid view at about 2 bits, beside those of uniform codes of as many."""

    paper = "LLaMA-2-7B, WikiText2 perplexity: 5.12 in fp16, 6.13 at 2.02 bits (+ 19.7 %)"
    source = "arXiv:2409.17066, table of LLaMA-2; the figure in fp16 from other papers' tables of the same setting"
    rule = "perplexity rises by at most 19.7 %, which is 0.180 nats a token"
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        setting = (
            f"off-grid view, vptq as it is by default, calibrated on 4096 tokens of the package's own text; {SCORED} "
            f"tokens of prose after {PREFIX}; the paper's model is fifty times larger, and its layers are tuned "
            "afterwards"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours, even, nearest = score(OURS), score(EVEN), score(NEAREST)
        near = score(NEAREST | {"bits": 8})
        coarse, twice = score(OURS | {"k": 16}), score(OURS | {"k": 16, "k_residual": 16})
        bits = {"vptq": ours.bits, "two tables of 16": twice.bits, "one": coarse.bits, "gptq": even.bits}
        return Measurement(
            headline=ahead(HEADLINE, ours.losses, full.losses, Bar(-RISE), "-0.180 nats"),
            parts=(
                ahead("loss below GPTQ's at 2 bits", ours.losses, even.losses),
                ahead("loss below round-to-nearest's at 2 bits", ours.losses, nearest.losses),
                ahead("a table of 256 below two of 16", ours.losses, twice.losses, None),
                ahead("two tables of 16 below one", twice.losses, coarse.losses),
            ),
            gates=(exactly("bytes of GPTQ's", ours.nbytes / even.nbytes, Bar(1.0, at_least=False)),),
            controls=(
                Control("round-to-nearest at 2 bits", "lose", advantage(nearest.losses, full.losses)),
                Control("8 bits", "hold", advantage(near.losses, full.losses)),
                Control("tables of 16, half the bits", "lose", advantage(coarse.losses, ours.losses)),
            ),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts},
            setting=setting,
            told="bits a weight, all included: " + ", ".join(f"{name} {value:.2f}" for name, value in bits.items()),
        )
