"""LoRA-FT: whether training low-rank additions gives back what rounding the weights to 4 bits lost."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from thrifty import registry
from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.scores.passages import Cut, Passages
from thrifty.claims.harness.state import State
from thrifty.claims.harness.statistics import Scores, advantage
from thrifty.claims.harness.weights import PREFIX, Compressed, WeightScores
from thrifty.evaluation.quality import Passage
from thrifty.weights.calibration import CalibrationSet, python_calibration
from thrifty.weights.technique import prepare

ROUNDED = {"technique": "rtn", "bits": 4, "group": 128}
STEPS, RATE = 40, 2e-4
SEQUENCES, TOKENS = 80, 128  # of the text that is learned
HELD_OUT = 16  # sequences after it, which are not learned
SHOWN = 32  # tokens of such a sequence that are not scored
STILL = 1e-9  # a rate at which nothing is learned
HEADLINE = "loss of a token with the rounded weights, below that after LoRA-FT"


class LoraFTClaim(Claim):
    """Losses on prose that was not learned: whole, rounded to 4 bits, and rounded with trained additions."""

    paper = "LLaMA3-8B at 4 bits: LoRA-FT on Alpaca does not make up for rounding on MMLU and lowers the score further"
    source = "arXiv:2404.14047, abstract; its tables are unconfirmed"
    rule = "a token's loss with 4-bit weights is not above the loss with the same weights after LoRA-FT"
    models = ("smollm2-135m",)
    minutes = 6.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        learned, held_out = _parted(python_calibration(score.view, SEQUENCES + HELD_OUT, TOKENS))
        setting = (
            f"off-grid view, round-to-nearest at 4 bits in groups of 128 (the paper: NF4), {STEPS} steps of LoRA at "
            f"{RATE:g} on Python's reference (the paper: 10,000 on Alpaca, a model 60 times as large); "
            f"{context.budget.tokens} tokens of prose after {PREFIX} (the paper: MMLU, which a model of this size "
            "answers by chance)"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        tuning = {"technique": "lora-ft", "steps": STEPS, "rate": RATE}
        rounded, own_before = _scored(score, learned, held_out, ROUNDED)
        ours, own_after = _scored(score, learned, held_out, ROUNDED, tuning)
        idle = score(ROUNDED, tuning | {"steps": 1, "rate": STILL}, calibration=learned)
        whole = score(tuning, calibration=learned)
        return Measurement(
            headline=ahead(HEADLINE, rounded.losses, ours.losses, Bar(0.0)),
            parts=(
                ahead("next tokens right with the rounded weights, above those after", rounded.right, ours.right),
                ahead("after LoRA-FT, loss below the unrounded weights'", ours.losses, full.losses, None),
                ahead("LoRA-FT of the unrounded weights, loss below theirs", whole.losses, full.losses, None),
                exactly("bits a weight with the additions", ours.bits, None, "plain"),
            ),
            gates=(ahead("loss on more of the learned text, below that before LoRA-FT", own_after, own_before),),
            controls=(
                Control("4 bits without LoRA-FT", "lose", advantage(rounded.losses, full.losses)),
                Control("additions that learn nothing, beside 4 bits", "hold", advantage(idle.losses, rounded.losses)),
            ),
            counts={
                "scored tokens": len(ours.losses),
                "passages": ours.losses.contexts,
                "of held-out text": len(own_after),
            },
            setting=setting,
            told=f"{rounded.bits:.2f} bits a weight before LoRA-FT, {ours.bits:.2f} after it",
        )


def _parted(text: CalibrationSet) -> tuple[CalibrationSet, list[Cut]]:
    """The text to learn, and passages of what follows it."""
    count = len(text.sequences) - min(HELD_OUT, len(text.sequences) // 2)
    rows = [tuple(map(int, row)) for row in text.sequences[count:]]
    shown = min(SHOWN, len(rows[0]) // 2)
    cuts = [Cut(f"sequence {place}", Passage(row[:shown], row[shown:])) for place, row in enumerate(rows)]
    return CalibrationSet(text.name, text.sequences[:count]), cuts


def _scored(
    score: WeightScores, text: CalibrationSet, held_out: list[Cut], *tables: dict[str, Any]
) -> tuple[Compressed, Scores]:
    """What is scored of the view under techniques that see the text, and its losses on what was held out of it."""
    context = score.context
    context.say(f"{list(tables)}")
    techniques = [registry.build("weights", table) for table in tables]
    model = prepare(score.view, techniques, calibration=text, errors=False)
    with closing(context.fresh(model)) as engine:
        own = Passages(engine, State(None, {})).losses(held_out, [], "nll")
    return score.of(context.fresh(model)), own
