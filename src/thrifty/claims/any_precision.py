"""Any precision: products of bit planes against products of bytes, and what few bits on both sides cost."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from thrifty.arrays import Floats
from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly, times
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.statistics import Scores, advantage
from thrifty.claims.harness.weights import PREFIX, WeightScores
from thrifty.formats.linear import BitPlaneLinear, GroupLinear, PackedLinear
from thrifty.kernels import dispatch

GROUP = 64
FASTER = 2.4
ROWS = 64  # of a product, as in a short prompt
SECONDS = 0.2  # that a timing lasts at least
ROLE = "mlp.up"  # the linear whose shape is timed
WIDTHS = {"W1A1": (1, 1), "W1A2": (1, 2), "W2A2": (2, 2), "W3A4": (3, 4), "W4A4": (4, 4), "W2A8": (2, 8)}
LOSSES = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4)}


class AnyPrecisionClaim(Claim):
    """Products with a linear of the model in several widths, and losses of the off-grid view."""

    paper = (
        "matrix products 2.4 × as fast as CUTLASS's integer products, inference 6.7 × as fast (RTX 3090, W2A2 and near)"
    )
    source = "arXiv:2409.17870, abstract; the paper's tables were not read"
    rule = (
        f"products of {ROWS} rows with 2-bit weights and activations at least 2.4 × as fast as 4-bit weights by bytes"
    )
    minutes = 2.0

    def measure(self, context: Context) -> Measurement:
        name = next(name for name in context.model.linears if name.endswith(ROLE))
        shape = context.model.linears[name]
        many, single = _rates(context, shape, ROWS), _rates(context, shape, 1)
        setting = (
            f"products with {shape.out_features} × {shape.in_features} weights in groups of {GROUP} on a processor; "
            "the baseline is Thrifty's own product of 4-bit weights with bytes, the paper's CUTLASS's on a GPU; losses "
            f"on the off-grid view, {context.budget.tokens} tokens of prose after {PREFIX}, all but embedding and head"
        )
        headline = times(
            f"W2A2 over 4-bit weights by bytes, {ROWS} rows", many["W2A2"], many["bytes"], Bar(FASTER), "2.4 ×"
        )
        scored = WeightScores(context)

        def losses(bits: tuple[int, int]) -> Scores:
            table = {"technique": "any-precision", "bits": bits[0], "activation_bits": bits[1], "group": GROUP}
            return scored(table).losses

        full = scored().losses
        if weak := unpredicted(full):
            return Measurement(headline, setting=f"{setting}; losses: {weak}")
        worst, made = losses((1, 1)), {key: losses(bits) for key, bits in LOSSES.items()}
        return Measurement(
            headline=headline,
            parts=(
                *(times(f"{key}, {ROWS} rows", many[key], many["bytes"], None) for key in WIDTHS if key != "W2A2"),
                *(times(f"{key}, one row", single[key], single["bytes"], None) for key in WIDTHS),
                *(ahead(f"loss of a token, {key}, below the full one's", own, full, None) for key, own in made.items()),
            ),
            gates=(exactly("products that differ from whole numbers'", _differing(shape), Bar(0.0, at_least=False)),),
            controls=(
                Control("1-bit weights and activations", "lose", advantage(worst, full)),
                Control("8-bit weights and activations", "hold", advantage(made["W8A8"], full)),
            ),
            counts={"scored tokens": len(full), "passages": full.contexts},
            setting=setting,
        )


def _rates(context: Context, shape: PackedLinear, rows: int) -> dict[str, Scores]:
    """Products a second of linears of one shape, by width."""
    context.say(f"products of {rows} rows")
    random = np.random.default_rng(context.seed)
    weight = random.standard_normal((shape.out_features, shape.in_features), np.float32)
    x = random.standard_normal((rows, shape.in_features), np.float32)
    stored: dict[str, PackedLinear] = {"bytes": GroupLinear.quantize(weight, 4, GROUP)}
    stored |= {name: BitPlaneLinear.quantize(weight, *bits, GROUP) for name, bits in WIDTHS.items()}
    return context.rounds({name: partial(_rate, linear, x) for name, linear in stored.items()})


def _rate(linear: PackedLinear, x: Floats) -> float:
    """Products a second over some time, of arrays that are ready."""
    module, held = dispatch.require(), dispatch.packed(linear)
    y, count = np.empty((len(x), linear.out_features), np.float32), 0
    module.matmul(held, x, y)
    start = time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        module.matmul(held, x, y)
        count += 1
    return count / (time.perf_counter() - start)


def _differing(shape: PackedLinear) -> float:
    """How many results of 2-bit planes differ from those of the formula in whole numbers."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((64, shape.in_features), np.float32)
    linear, x = BitPlaneLinear.quantize(weight, 2, 2, GROUP), random.standard_normal((5, shape.in_features), np.float32)
    return float((dispatch.matmul(linear, x) != linear.oracle(x)).sum())
