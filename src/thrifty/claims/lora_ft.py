"""LoRA-FT: whether low-rank training beside rounded weights makes up for the rounding."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, Part, ahead, exactly
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.statistics import advantage
from thrifty.claims.harness.weights import PREFIX, Compressed, WeightScores
from thrifty.weights.calibration import python_calibration

CODES = {"technique": "rtn", "bits": 4, "group": 128}
COARSE = CODES | {"bits": 3}
STEPS, BATCH = 24, 2
SEQUENCES, TOKENS = 96, 128  # of training text
LEAST = 0.02  # nats that a repair would give back
MISSING = "a model that answers MMLU, Alpaca and thousands of steps: in a few no repair could show"


class LoraFTClaim(Claim):
    """Losses of the off-grid view at 4 bits, with and without a trained product of low rank beside each matrix."""

    paper = "LLaMA3-8B at 4 bits and fewer: LoRA-FT on Alpaca does not make up for rounding (MMLU), and is worse"
    source = "arXiv:2404.14047, abstract and section on LoRA-FT; read second-hand"
    rule = "with LoRA-FT the MMLU score is not above that of the rounded model without it"
    models = ("smollm2-135m",)
    minutes = 8.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        text = python_calibration(score.view, SEQUENCES, TOKENS)
        setting = (
            f"off-grid view, rtn of 4 bits in groups of 128, {STEPS} steps of {BATCH * TOKENS} tokens of Python's "
            f"reference (the paper: Alpaca, thousands of steps, MMLU); {context.budget.tokens} tokens of prose after "
            f"{PREFIX}"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable("loss of a token", weak, setting)

        def repaired(codes: dict[str, Any], steps: int) -> Compressed:
            table = {"technique": "lora-ft", "steps": steps, "batch": BATCH}
            return score(codes, table, calibration=text)

        plain, ours = score(CODES), repaired(CODES, STEPS)
        coarse, coarse_repaired = score(COARSE), repaired(COARSE, STEPS)
        return Measurement(
            headline=Part("MMLU score above that without LoRA-FT", missing=MISSING),
            parts=(
                ahead("loss below that without LoRA-FT", ours.losses, plain.losses, Bar(LEAST, at_least=False)),
                ahead("the same at 3 bits", coarse_repaired.losses, coarse.losses, Bar(LEAST, at_least=False)),
                ahead("loss with LoRA-FT below the unrounded weights'", ours.losses, full.losses, None),
                exactly("bits a weight with the products", ours.bits, None, "plain"),
            ),
            controls=(
                Control("3 bits without LoRA-FT", "lose", advantage(coarse.losses, full.losses)),
                Control("one step of LoRA-FT", "shown", advantage(repaired(CODES, 1).losses, plain.losses)),
            ),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts, "steps": STEPS},
            setting=setting,
        )
