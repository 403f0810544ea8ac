"""BackSlash: a training under a generalised Gaussian prior, whose weights take few bits when they are entropy-coded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from thrifty import extras
from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly
from thrifty.claims.harness.statistics import Scores, advantage
from thrifty.evaluation.text import prose
from thrifty.weights.exp_golomb import best_order, bits_of
from thrifty.weights.generalised_gaussian import first_weights, fitted, levels_of

if TYPE_CHECKING:
    from thrifty.arrays import Array, Floats, Integers
    from thrifty.training.loop.fresh import Trained

LENGTH, BATCH, RATE, HELD_OUT = 128, 8, 2e-3, 20  # tokens, sequences of a step, AdamW's rate, sequences that are scored
STEPS: Mapping[str, int] = {"20": 150}
LONGER = 300
LEARNED = 0.1  # nats below the loss of words' counts: less is no language model
LESS, SLACK = 0.4, -0.01  # the least saving of 60 %; a hundredth of a nat
HEADLINE = "entropy-coded bits of those without BackSlash"


class GGDClaim(Claim):
    """Two trainings of a small decoder from the same Gaussian weights, with BackSlash and without, and one from GG."""

    paper = "BackSlash: 60 to 90 % less memory of entropy-coded weights without a loss of accuracy"
    source = "arXiv:2504.16968, abstract; the step and its constants in the released code of arXiv:2506.00486"
    rule = "at most 0.4 of the Exp-Golomb bits, at a loss of held-out tokens that is at most 0.01 nats higher"
    models = ("recall-2m",)
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        extras.require_torch("claim 'ggd'")
        from thrifty.training.loop.backslash import BackSlash

        steps = STEPS.get(context.budget.name, LONGER)
        setting = (
            f"a decoder of the sizes of {context.name} from new weights, {steps} steps of {BATCH} × {LENGTH} "
            "tokens of the package's prose, of which the last sequences are held out; weights on a grid of 2⁻¹³"
        )
        plain = _trained(context, steps, 2.0)
        ours = _trained(context, steps, 2.0, partial(BackSlash, shape_of=lambda weights: fitted(weights).shape))
        sharp = _trained(context, steps, 1.0)
        untrained = _trained(context, 0, 2.0)
        mine, theirs = (_scores(made, context.seed) for made in (ours, plain))
        counted = _by_counts(_sequences(context), context.seed)
        if (better := advantage(theirs, counted)).low <= LEARNED:
            missing = (
                f"a training that learns more than how often words come; without BackSlash it is {better.value:+.2f} "
                "nats better than their counts"
            )
            return Measurement.untestable(HEADLINE, missing, setting)
        bits = {"BackSlash": _bits(ours), "without": _bits(plain)}
        shape = fitted(_flat(ours)).shape
        return Measurement(
            headline=exactly(HEADLINE, bits["BackSlash"] / bits["without"], Bar(LESS, at_least=False)),
            parts=(
                ahead("loss below that from Gaussian first weights, from GG(1)", _scores(sharp, context.seed), theirs),
                exactly("shape of the weights", shape, None, "plain"),
            ),
            gates=(ahead("loss below that without BackSlash", mine, theirs, Bar(SLACK)),),
            controls=(
                Control("no training", "lose", advantage(_scores(untrained, context.seed), theirs)),
                Control("first weights GG(1)", "shown", advantage(_scores(sharp, context.seed), theirs)),
            ),
            counts={"scored tokens": len(mine), "passages": mine.contexts, "steps": steps},
            setting=setting,
            told="bits a weight: " + ", ".join(f"{name} {value:.2f}" for name, value in bits.items()),
        )


def _trained(context: Context, steps: int, shape: float, after: Any = None) -> Trained:
    from thrifty.training.loop.batches import Batches
    from thrifty.training.loop.fresh import train_from_scratch, with_new_weights
    from thrifty.training.loop.loop import Plan

    context.say(f"training of {steps} steps, first weights GG({shape:g}){', BackSlash' if after else ''}")
    sequences = _sequences(context)
    net = with_new_weights(
        context.model, lambda *sizes: first_weights(sizes[0], sizes[1], shape, sizes[2]), context.seed
    )
    plan = Plan(steps, RATE, warm_up=steps // 15, seed=context.seed)
    batches = Batches(sequences[:-HELD_OUT], BATCH, context.seed)
    return train_from_scratch(net, batches, sequences[-HELD_OUT:], plan, after=after)


def _sequences(context: Context) -> Integers:
    """int64 [sequences, LENGTH] of the package's prose."""
    from thrifty.training.loop.batches import cut

    return cut(list(context.model.require_tokenizer().encode(prose())), LENGTH)


def _by_counts(sequences: Integers, seed: int) -> Scores:
    """Losses of the held-out tokens by how often each comes in the rest, one added to every count."""
    counts = np.bincount(sequences[:-HELD_OUT].reshape(-1), minlength=int(sequences.max()) + 1) + 1.0
    losses = -np.log(counts / counts.sum())[sequences[-HELD_OUT:, 1:]]
    return _of_tokens(losses, seed)


def _scores(made: Trained, seed: int) -> Scores:
    return _of_tokens(made.losses, seed)


def _of_tokens(losses: Floats | Array, seed: int) -> Scores:
    """[sequences, tokens]: one loss a token; the sequence is the cluster."""
    values = tuple(float(value) for row in losses for value in row)
    clusters = tuple(f"{seed}/{place}" for place, row in enumerate(losses) for _ in row)
    return Scores(values, clusters, higher=False, bounded=False)


def _flat(made: Trained) -> Floats:
    return np.concatenate([weight.reshape(-1) for weight in made.weights.values()])


def _bits(made: Trained) -> float:
    """Bits a weight of the Exp-Golomb codes of all weights, of the order that suits them best."""
    levels = levels_of(_flat(made))
    return bits_of(levels, best_order(levels)) / levels.size
