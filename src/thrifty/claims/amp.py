"""AMP: heads and neurons chosen by their activations against a choice by weights, at the same share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from thrifty.arrays import Floats
from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly, times
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.statistics import Scores, advantage
from thrifty.claims.harness.weights import PREFIX, Compressed, WeightScores
from thrifty.evaluation.forcing import force
from thrifty.evaluation.text import held_out
from thrifty.weights.calibration import Calibration, CalibrationSet, python_calibration
from thrifty.weights.cutting import Structure
from thrifty.weights.structure_technique import StructureTechnique
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.amp import AMP, kept_heads, sizes

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.models.model import Model

SHARE, STEPS, RATE = 0.2, 6, 3e-3
SEQUENCES, TOKENS = 16, 128  # of the text that scores and recovery come from
PROMPT, DECODED = 64, 48
FASTER = 1.25
HEADLINE = "loss of a token below that of a choice by the size of weights"
SMALLER = 0.805  # of the weights of attention and MLP, 0.8 of them but for rounding


@dataclass(frozen=True, kw_only=True)
class Rival(StructureTechnique):
    """As many heads and neurons as AMP leaves at a share, chosen by scores of its own: by the size of the weights that
    read them, or at random.
    """

    name: ClassVar[str] = "rival"
    seed: int | None = None
    share: float = SHARE

    def choose(self, model: Model, calibration: Calibration | None) -> Structure:
        config = model.config
        heads_left, neurons_left = sizes(config, self.share, True, "each")
        heads: dict[int, list[int]] = {}
        neurons: dict[int, list[int]] = {}
        for layer in range(len(config.layers)):
            output = self.scores(model, f"layers.{layer}.attention.output", layer)
            by_head = output.reshape(config.heads, -1).mean(axis=1)
            heads[layer] = kept_heads(by_head, heads_left, config.kv_heads, "each").tolist()
            down = self.scores(model, f"layers.{layer}.mlp.down", layer)
            neurons[layer] = np.sort(np.argsort(-down, kind="stable")[:neurons_left]).tolist()
        return Structure(heads=heads if heads_left < config.heads else None, neurons=neurons)

    def scores(self, model: Model, name: str, layer: int) -> Floats:
        """Of each column of a linear: its norm, or chance."""
        linear = model.linears[name]
        if self.seed is None:
            norms: Floats = np.linalg.norm(linear.dequantize(), axis=0)
            return norms
        return np.random.default_rng([self.seed, layer, linear.in_features]).random(linear.in_features, np.float32)


class AMPClaim(Claim):
    """Losses and speed of the off-grid view, its weights in bf16, whole and a fifth smaller."""

    paper = "LLaMA-7B, 20 % pruned, recovered: 64.52 on commonsense tasks (LLM-Pruner 62.19); 1.25 times as fast"
    source = "arXiv:2504.21174, tables of LLaMA-7B"
    rule = "at the same 20 %, a token's loss is below that of heads and neurons chosen by weights alone"
    models = ("smollm2-135m",)
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        view = score.view
        text = python_calibration(view, SEQUENCES, TOKENS)
        setting = (
            f"off-grid view in bf16, {SHARE:.0%} of attention and MLP gone; {context.budget.tokens} tokens of prose "
            f"after {PREFIX}; recovery: {STEPS} steps of LoRA at {RATE:g} from the whole model's predictions, on "
            f"{AMP().batch * TOKENS} tokens of Python's reference each (the paper: two epochs of alpaca-cleaned at "
            "3e-4, from the text); its rival, LLM-Pruner, is not here"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours, pruned = _pruned(score, text)
        healing = {"technique": "amp", "share": SHARE, "recovery": STEPS, "rate": RATE, "distil": True}
        recovered = score(healing, calibration=text)
        by_weights, random = (_rival(score, Rival(seed=seed)) for seed in (None, context.seed))
        whole = _rival(score, Rival(share=0.0))
        fast, slow = _rates(context, view, pruned)
        return Measurement(
            headline=ahead(HEADLINE, ours.losses, by_weights.losses),
            parts=(
                ahead("loss below that of a random choice", ours.losses, random.losses),
                ahead("recovered, loss below that before", recovered.losses, ours.losses),
                ahead("recovered, loss below the whole model's", recovered.losses, full.losses, None),
                times("decodes faster", fast, slow, Bar(FASTER), "1.25 ×"),
            ),
            gates=(exactly("bytes of the linears", ours.nbytes / full.nbytes, Bar(SMALLER, at_least=False)),),
            controls=(
                Control("a random choice", "lose", advantage(random.losses, full.losses)),
                Control("cut, with nothing left out", "hold", advantage(whole.losses, full.losses)),
            ),
            counts={"scored tokens": len(ours.losses), "passages": ours.losses.contexts},
            setting=setting,
        )


def _pruned(score: WeightScores, text: CalibrationSet) -> tuple[Compressed, Model]:
    """What is scored of the model that AMP leaves, and that model."""
    model = prepare(score.view, [AMP(share=SHARE)], calibration=text)
    return score.of(score.context.fresh(model)), model


def _rival(score: WeightScores, rival: Rival) -> Compressed:
    """What is scored under a rival's choice."""
    return score.of(score.context.fresh(prepare(score.view, [rival])))


def _rates(context: Context, whole: Model, pruned: Model) -> tuple[Scores, Scores]:
    """Rates of decoding, pruned and whole, tokens a second, in alternating rounds."""
    context.say("speed of decoding, pruned and whole")
    engines = {"ours": context.fresh(pruned), "baseline": context.fresh(whole)}
    try:
        sides: dict[str, Callable[[], float]] = {name: partial(_rate, engine) for name, engine in engines.items()}
        made = context.rounds(sides)
        return made["ours"], made["baseline"]
    finally:
        for engine in engines.values():
            engine.close()


def _rate(engine: Engine) -> float:
    tokens = held_out(engine.model.require_tokenizer(), PROMPT + DECODED + 1)
    times_taken = [step.seconds for step in force(engine, tokens[:PROMPT], tokens[PROMPT:], [])]
    return 1 / fmean(times_taken[1:])
