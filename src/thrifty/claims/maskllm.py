"""MaskLLM: whether masks that are learned lose less than those of SparseGPT."""

from __future__ import annotations

import math
from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.statistics import advantage
from thrifty.claims.harness.weights import PREFIX, Compressed, WeightScores
from thrifty.weights.calibration import python_calibration
from thrifty.weights.techniques.maskllm import MaskLLM

RISE = math.log(6.72 / 5.12)  # of a token's loss, in nats
HEADLINE = "loss of a token below SparseGPT's"
LAYERS, STEPS = 6, 40
SEQUENCES, TOKENS = 160, 128  # of training text
SMALLER = 0.92  # 6 of 30 layers at 9 of 16 bits: 0.91


class MaskLLMClaim(Claim):
    """Losses of the off-grid view, its weights in bf16, with the last layers at 2:4 under three kinds of masks."""

    paper = "Llama-2-7B at 2:4, Wikitext perplexity: 6.72 (SparseGPT 10.42, dense 5.12)"
    source = "arXiv:2409.17481, table 1"
    rule = "a token's loss is below SparseGPT's at the same layers, which move their weights; masks alone are learned"
    models = ("smollm2-135m",)
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        view = score.view
        text = python_calibration(view, SEQUENCES, TOKENS)
        count = len(view.config.layers)
        layers = list(range(max(0, count - LAYERS), count))
        setting = (
            f"off-grid view in bf16, the last {len(layers)} of {count} layers at 2:4, masks learned in {STEPS} steps "
            f"of {MaskLLM().batch * TOKENS} tokens (the paper: all layers, 2000 steps of a million), SparseGPT shown "
            f"the same {SEQUENCES * TOKENS} tokens; {context.budget.tokens} tokens of prose after {PREFIX}"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)

        def masked(technique: str, **options: Any) -> Compressed:
            return score({"technique": technique, "layers": layers, **options}, calibration=text)

        ours, magnitude = masked("maskllm", steps=STEPS), masked("magnitude")
        sparsegpt, still = masked("sparsegpt"), masked("sparsegpt", update=False)
        near = masked("rtn", bits=8)
        return Measurement(
            headline=ahead(HEADLINE, ours.losses, sparsegpt.losses),
            parts=(
                ahead("loss below that of SparseGPT's masks, weights as they are", ours.losses, still.losses),
                ahead("loss below that of the largest weights", ours.losses, magnitude.losses),
                ahead(
                    "loss below the dense weights'",
                    ours.losses,
                    full.losses,
                    _of_all(len(layers), count),
                    "-0.272 nats",
                ),
            ),
            gates=(exactly("bytes of the linears", ours.nbytes / full.nbytes, Bar(SMALLER, at_least=False)),),
            controls=(
                Control("the largest weights stay", "lose", advantage(magnitude.losses, full.losses)),
                Control("8 bits, all weights", "hold", advantage(near.losses, full.losses)),
            ),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts},
            setting=setting,
        )


def _of_all(layers: int, count: int) -> Bar | None:
    """The paper's rise is that of all layers: a part of them is held to no bar."""
    return Bar(-RISE) if layers == count else None
