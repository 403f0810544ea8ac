"""SqueezeLLM: three bits whose values follow the loss against three bits in even steps."""

from __future__ import annotations

import math

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.scores.passages import SCORED
from thrifty.claims.harness.statistics import advantage
from thrifty.claims.harness.weights import PREFIX, WeightScores, allowed

OURS = {"technique": "squeezellm", "bits": 3}
DENSE = OURS | {"outliers": 0.0, "sensitive": 0.0}
EVEN = {"technique": "gptq", "bits": 3, "group": 128}
NEAREST = {"technique": "rtn", "bits": 3, "group": 128}
FULL, SPARSE, PLAIN, GPTQ = (math.log(perplexity) for perplexity in (7.08, 7.56, 7.75, 9.55))
SHARE = (SPARSE - FULL) / (GPTQ - FULL)  # 0.22 of the rise in a token's loss
HEADLINE = "loss of a token below 0.22 of GPTQ's rise at 3 bits"
MOST = 1.1  # of GPTQ's bytes: 3.25 bits a weight there; 3 and tables, 0.5 % of single weights here


class SqueezellmClaim(Claim):
    """Losses of the off-grid view at 3 bits, beside those of uniform codes of 3 bits."""

    paper = "LLaMA-7B, C4 perplexity: 7.08 in fp16; 3 bits: 7.56 with 0.45 % sparse, 7.75 dense, 9.55 with GPTQ"
    source = "arXiv:2306.07629, table of LLaMA-7B (by a summary of it)"
    rule = "the loss of a token rises by at most 0.22 of what it rises with GPTQ at 3 bits"
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        setting = (
            f"off-grid view, 3 bits, {OURS['technique']} with 0.5 % of single weights, gptq in groups of 128, both "
            f"calibrated on 4096 tokens of the package's own text; {SCORED} tokens of prose after {PREFIX}; in the "
            "paper GPTQ has one grid a row, which loses more"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours, even = score(OURS), score(EVEN)
        dense, nearest, near = score(DENSE), score(NEAREST), score(NEAREST | {"bits": 8})
        bits = {"squeezellm": ours.bits, "dense alone": dense.bits, "gptq": even.bits, "rtn": nearest.bits}
        return Measurement(
            headline=ahead(HEADLINE, ours.losses, allowed(full.losses, even.losses, SHARE), Bar(0.0)),
            parts=(
                ahead("loss below GPTQ's", ours.losses, even.losses, paper=f"{GPTQ - SPARSE:+.3f} nats"),
                ahead("dense alone below GPTQ's", dense.losses, even.losses, paper=f"{GPTQ - PLAIN:+.3f} nats"),
                ahead("with single weights below dense alone", ours.losses, dense.losses),
                ahead("loss below round-to-nearest's", ours.losses, nearest.losses),
                ahead(
                    "loss below the unrounded weights'", ours.losses, full.losses, None, f"{FULL - SPARSE:+.3f} nats"
                ),
            ),
            gates=(exactly("bytes of GPTQ's", ours.nbytes / even.nbytes, Bar(MOST, at_least=False)),),
            controls=(
                Control("round-to-nearest at 3 bits", "lose", advantage(nearest.losses, full.losses)),
                Control("8 bits", "hold", advantage(near.losses, full.losses)),
                Control("GPTQ at 3 bits", "shown", advantage(even.losses, full.losses)),
            ),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts},
            setting=setting,
            told="bits a weight, all included: " + ", ".join(f"{name} {value:.2f}" for name, value in bits.items()),
        )
