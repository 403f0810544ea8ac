"""XTC: which layers stay, what signs stand for, and that distillation brings back what rounding took."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from thrifty import registry
from thrifty.errors import KernelError, RecipeError
from thrifty.formats.linear import DenseLinear, SignLinear
from thrifty.models.model import Model
from thrifty.reference.linear import Linear
from thrifty.reference.loading import build
from thrifty.training.loop.distilling import RoundedLinear
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.technique import prepare

TEXT = CalibrationSet("numbers", np.random.default_rng(0).integers(0, 50, (4, 16)))


def xtc(**options: Any) -> Any:
    return registry.build("weights", {"technique": "xtc", "group": 32} | options)


def divergence(model: Model, other: Model) -> float:
    """Mean KL of the next token from `model`, over the text."""
    total = 0.0
    for tokens in TEXT.sequences:
        wanted, found = (torch.log_softmax(build(each).logits(tokens), -1) for each in (model, other))
        total += float((wanted.exp() * (wanted - found)).sum(-1).mean())
    return total / len(TEXT.sequences)


@pytest.mark.parametrize(
    ("layers", "every", "kept"), [(12, 2, [1, 3, 5, 7, 9, 11]), (12, 1, [*range(12)]), (5, 3, [2])]
)
def test_the_layers_that_stay(layers: int, every: int, kept: list[int]) -> None:
    assert xtc(every=every).kept(layers) == kept


def test_gradients_pass_straight_through_the_rounding() -> None:
    weight = np.random.default_rng(1).standard_normal((4, 32), np.float32)
    linear = RoundedLinear(Linear(DenseLinear.from_weight(weight)), xtc(weights="binary").rounded)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    y = linear(x)
    signs = np.where(weight < 0, -1, 1) * np.float16(np.abs(weight).mean(1)).astype(np.float32)[:, None]
    np.testing.assert_allclose(y.detach().numpy(), x.numpy() @ signs.T, rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert linear.weight.grad is not None
    np.testing.assert_allclose(linear.weight.grad.numpy(), np.tile(x.sum(0).numpy(), (4, 1)), rtol=1e-5)


def test_without_steps_it_is_the_signs_of_the_weights(plain: Model) -> None:
    small = prepare(plain, [xtc(steps=0, weights="binary")], calibration=TEXT)
    name = "layers.1.mlp.down"
    wanted = SignLinear.quantize(plain.linears[name].dequantize(), 2, 32).dequantize()
    assert np.array_equal(small.linears[name].dequantize(), wanted)
    assert small.linears["embedding"] is plain.linears["embedding"]
    assert {linear.label for linear in small.linears.values()} == {"f32", "binary-g32"}


@pytest.mark.long
@pytest.mark.parametrize("weights", ["binary", "ternary"])
def test_distillation_brings_predictions_nearer(plain: Model, weights: str) -> None:
    options = {"weights": weights, "rate": 5e-3, "batch": 2}
    before, after = (prepare(plain, [xtc(steps=steps, **options)], calibration=TEXT) for steps in (0, 8))
    assert divergence(plain, after) < 0.8 * divergence(plain, before)
    assert after.linears["layers.0.mlp.up"].label == f"{weights}-g32"


def test_layers_are_left_out_and_the_rest_learns(plain: Model) -> None:
    options = {"every": 2, "steps": 0, "rate": 3e-3, "batch": 2}
    before, after = (prepare(plain, [xtc(reduction_steps=n, **options)], calibration=TEXT) for n in (0, 15))
    assert len(after.config.layers) == 1 and len(plain.config.layers) == 2
    assert divergence(plain, after) < divergence(plain, before)
    assert after.version.partition("+")[0] != plain.version


def test_what_is_refused(plain: Model) -> None:
    with pytest.raises(RecipeError, match="keeps one of every 3 layers and the model has 2"):
        prepare(plain, [xtc(every=3)], calibration=TEXT)
    with pytest.raises(RecipeError, match="option 'group'"):
        xtc(group=40)
    plain.linears["layers.0.mlp.up"].weight[0, 0] = np.nan  # type: ignore[attr-defined]
    with pytest.raises((KernelError, RecipeError), match="NaN|loss of step 1 is nan"):
        prepare(plain, [xtc(steps=1)], calibration=TEXT)
