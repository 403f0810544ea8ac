"""MARLIN: whether the speed-up of 4-bit weights over bf16 weights lasts as batches grow to 16 and 32 rows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from thrifty import registry
from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly, times
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.scores.passages import SCORED
from thrifty.claims.harness.statistics import Scores, advantage
from thrifty.claims.harness.weights import PREFIX, WeightScores
from thrifty.formats.linear import PackedLinear
from thrifty.kernels import dispatch
from thrifty.models.model import Model
from thrifty.weights.calibration import default_calibration
from thrifty.weights.structure import linears
from thrifty.weights.technique import OUTSIDE, prepare

OURS = {"technique": "marlin"}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
JUDGED = 16  # rows of the paper's headline
NEAR = 0.9 * 16 / 4.125  # nine tenths of what the bytes allow, 3.88
SEQUENCES, TOKENS = 8, 256  # of the package's own text, to calibrate with
RISE = math.log(5.27 / 5.12)  # of a token's loss, in nats
WRONG = 0.02  # of an output's length: 8-bit activations make about 0.005
BITS = 4.2  # a weight, with its group's scale: 4.125, and short last groups
HEADLINE = f"as fast as bf16 weights at {JUDGED} rows"


class MarlinClaim(Claim):
    """Rates of products with all linears of the layers, bf16 and MARLIN's, in batches of 1 to 64 rows."""

    paper = "A10: 3.87 times as fast as FP16 weights at batches up to 16 to 32; Llama-2-7B, Wiki2: 5.12 to 5.27"
    source = "arXiv:2408.11743, abstract and figures of the authors' repository, which was read"
    rule = "at 16 rows at least nine tenths of the 3.88 times that the bytes allow"
    models = ("smollm2-135m",)
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        score = WeightScores(context)
        setting = (
            "products of all linears of the layers, off-grid view, 8-bit activations; on a CPU, the paper on a GPU; "
            f"calibrated on {SEQUENCES * TOKENS} tokens; {SCORED} tokens of prose a passage after {PREFIX}"
        )
        full = score()
        if weak := unpredicted(full.losses):
            return Measurement.untestable(HEADLINE, weak, setting)
        context.say("marlin")
        text = default_calibration(score.view, SEQUENCES, TOKENS)
        small = prepare(score.view, [registry.build("weights", OURS)], calibration=text, errors=False)
        rates = _rates(context, inside(score.view), inside(small))
        wrong = max(error(linear) for linear in inside(small))
        ours = score.of(context.fresh(small))
        speeds = {
            rows: times(
                f"as fast as bf16 weights at {rows} row{'s' if rows > 1 else ''}",
                rates[f"marlin {rows}"],
                rates[f"bf16 {rows}"],
                Bar(NEAR) if rows == JUDGED else None,
                "3.87 ×",
            )
            for rows in BATCHES
        }
        together = rates[f"marlin {JUDGED}"]
        return Measurement(
            headline=speeds.pop(JUDGED),
            parts=(
                *speeds.values(),
                ahead("loss below the unrounded weights'", ours.losses, full.losses, Bar(-RISE), "-0.029 nats"),
            ),
            gates=(
                exactly("largest error of a product with its own weights", wrong, Bar(WRONG, at_least=False)),
                exactly("bits a weight", ours.bits, Bar(BITS, at_least=False), "plain", "4.125"),
            ),
            controls=(
                Control(
                    f"the same {JUDGED} rows one at a time, in shares of the rate together",
                    "lose",
                    advantage(_shares(rates["one at a time"], together), _shares(together, together)),
                ),
            ),
            counts={"linears": len(inside(small)), "rounds": len(together), "scored tokens": len(ours.losses)},
            setting=setting,
            told=f"{ours.bits:.2f} bits a weight; the layout is that of every symmetric int4-g128",
        )


def inside(model: Model) -> list[PackedLinear]:
    """The linears that the technique is meant for."""
    return [own.linear for own in linears(model) if own.role not in OUTSIDE]


def error(linear: PackedLinear) -> float:
    """‖y − Wx‖ / ‖Wx‖ of the native product of JUDGED random rows, W as stored."""
    x = np.random.default_rng(0).standard_normal((JUDGED, linear.in_features), np.float32)
    exact = x @ linear.dequantize().T
    return float(np.linalg.norm(dispatch.matmul(linear, x) - exact) / np.linalg.norm(exact))


def _rates(context: Context, dense: Sequence[PackedLinear], small: Sequence[PackedLinear]) -> dict[str, Scores]:
    """Rows a second through all linears, by side and batch, in alternating rounds."""
    held = {
        name: [(dispatch.packed(own), own.in_features, own.out_features) for own in layers]
        for name, layers in (("bf16", dense), ("marlin", small))
    }
    sides = {f"{name} {rows}": partial(_rate, own, rows, rows) for rows in BATCHES for name, own in held.items()}
    return context.rounds(sides | {"one at a time": partial(_rate, held["marlin"], JUDGED, 1)})


def _rate(held: Sequence[tuple[Any, int, int]], rows: int, together: int) -> float:
    """Rows a second of `rows` rows through all layers, `together` in one product, for at least half a second."""
    matmul, random = dispatch.require().matmul, np.random.default_rng(1)
    inputs = {columns: random.standard_normal((together, columns), np.float32) for _, columns, _ in held}
    passes, start = 0, time.perf_counter()
    while not passes or time.perf_counter() - start < 0.5:
        for layer, columns, outputs in held:
            y = np.empty((together, outputs), np.float32)
            for _ in range(rows // together):
                matmul(layer, inputs[columns], y)
        passes += 1
    return passes * rows / (time.perf_counter() - start)


def _shares(rates: Scores, of: Scores) -> Scores:
    """Rates as shares of a side's mean."""
    return replace(rates, values=tuple(value / of.mean for value in rates.values))
