"""ZeroQuant: its rounding written out, distillation against a slow version of a step, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.weights.conftest import CONFIGS, build

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.errors import KernelError, RecipeError
from thrifty.formats.linear import DenseLinear
from thrifty.models.model import Model
from thrifty.reference.attention import causal
from thrifty.reference.distillation import LayerDistillation, straight_through
from thrifty.reference.loading import build as build_reference
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.results import Result, Results
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.zeroquant import ZeroQuant, group_wise, rounded_tokens, rounded_weight

TEXT = CalibrationSet("numbers", np.random.default_rng(0).integers(0, 50, (3, 12), np.int64))


def technique(**options: Any) -> ZeroQuant:
    made = registry.build("weights", {"technique": "zeroquant"} | options)
    assert isinstance(made, ZeroQuant)
    return made


def labels(model: Model) -> dict[str, str]:
    return {name.removeprefix("layers.0."): linear.label for name, linear in model.linears.items()}


@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_and_scales_are_equation_1(bits: int, group: int | None) -> None:
    weight = np.random.default_rng(1).standard_normal((6, 72)).astype(np.float32)
    weight[2] = 0
    codes, scales = group_wise(weight, bits, group)
    low, high, width = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, group or 72
    assert scales.shape == (6, -(-72 // width))
    for row in range(6):
        for first in range(0, 72, width):
            own = [float(value) for value in weight[row, first : first + width]]
            step = float(np.float16(2 * max(map(abs, own)) / 2**bits))
            expected = [max(low, min(high, round(value / step))) if step else 0 for value in own]
            assert scales[row, first // width] == np.float16(step)
            assert np.abs(codes[row, first : first + width] - expected).max() <= 1
            assert (codes[row, first : first + width] == expected).mean() > 0.95
    assert codes.min() == low and codes.max() == high, "the greatest value is clipped"


def test_tokens_have_one_scale_each() -> None:
    x = np.random.default_rng(2).standard_normal((3, 40)).astype(np.float32)
    x[1] = 0
    for row, found in zip(x, rounded_tokens(x), strict=True):
        step = max(abs(float(value)) for value in row) / 127 or 1.0
        np.testing.assert_allclose(found, [step * round(float(value) / step) for value in row], atol=1e-6)


def test_attention_and_mlp_have_bits_of_their_own(plain: Model) -> None:
    found = labels(prepare(plain, [technique(mlp_bits=4)]))
    assert {found[f"attention.{role}"] for role in ("query", "key", "value", "output")} == {"int8-row-token"}
    assert {found[f"mlp.{role}"] for role in ("gate", "up", "down")} == {"int4-row-token"}
    assert labels(prepare(plain, [technique(group=32)]))["mlp.up"] == "int8-g32-token"
    assert not technique().needs_calibration and not technique(steps=2, text="random").needs_calibration
    assert technique(steps=2).needs_calibration and technique().units(plain) == 14


def test_what_is_stored_is_what_was_distilled_for(plain: Model) -> None:
    for bits, group in ((4, None), (8, 32)):
        stored = prepare(plain, [technique(attention_bits=bits, mlp_bits=bits, group=group)])
        for name in ("layers.0.attention.query", "layers.1.mlp.down"):
            weight = plain.linears[name].dequantize()
            assert np.array_equal(stored.linears[name].dequantize(), rounded_weight(weight, bits, group))


def test_gradients_pass_through_rounding_unchanged() -> None:
    x = torch.tensor([[0.3, -1.2]], requires_grad=True)
    y = straight_through(x, torch.tensor([[0.0, -1.0]]))
    (y * torch.tensor([[2.0, 5.0]])).sum().backward()
    assert y.tolist() == [[0.0, -1.0]] and x.grad is not None and x.grad.tolist() == [[2.0, 5.0]]


def slow_steps(model: Model, layer: int, names: list[str], states: torch.Tensor, steps: int, rate: float) -> Floats:
    """The first named weight after AdamW on what rounding costs the layer, all sequences at once, written out."""
    teacher, student = build_reference(model).decoder, build_reference(model).decoder
    places, attend = torch.arange(states.shape[1]), causal(model.config)
    with torch.no_grad():
        wanted = [teacher.layer(layer, state, places, attend) for state in states]
    weights = [torch.from_numpy(model.linears[name].dequantize().copy()).requires_grad_() for name in names]

    class Student(torch.nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.own = weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x + (torch.from_numpy(rounded_tokens(x.detach().numpy())) - x).detach()
            whole = torch.from_numpy(rounded_weight(self.own.detach().numpy(), 4, None))
            return rows @ (self.own + (whole - self.own).detach()).T

    for name, weight in zip(names, weights, strict=True):
        student.replace(name, Student(weight))  # type: ignore[arg-type]
    moments = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in weights]
    for step in range(1, steps + 1):
        made = [student.layer(layer, state, places, attend) for state in states]
        loss = torch.stack([((own - goal) ** 2).mean() for own, goal in zip(made, wanted, strict=True)]).mean()
        gradients = torch.autograd.grad(loss, weights)
        for weight, gradient, (first, second) in zip(weights, gradients, moments, strict=True):
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient**2)
            change = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            weight.data -= rate * change
    return weights[0].detach().numpy()


def test_a_layer_learns_by_adamw_from_the_teachers_states(plain: Model) -> None:
    names = [name for name in plain.linears if name.startswith("layers.1.")]
    grids = {name: lambda weight: rounded_weight(weight, 4, None) for name in names}
    distillation = LayerDistillation(plain, TEXT.sequences, steps=2, batch=3, learning_rate=1e-3)
    other = {name: lambda weight: np.zeros_like(weight) for name in plain.linears if name.startswith("layers.0.")}
    distillation(0, other, rounded_tokens, lambda: None)  # the states behind it are the teacher's all the same
    learned = distillation(1, grids, rounded_tokens, lambda: None)
    decoder = build_reference(plain).decoder
    with torch.no_grad():
        states = torch.stack([
            decoder.layer(0, decoder.embed(row), torch.arange(12), causal(plain.config))
            for row in torch.from_numpy(TEXT.sequences)
        ])  # fmt: skip
    expected = slow_steps(plain, 1, names, states, 2, 1e-3)
    before = plain.linears[names[0]].dequantize()
    moved, wanted = learned[names[0]] - before, expected - before
    assert np.abs(wanted).max() > 1e-3 and (np.abs(moved - wanted) < 2e-4).mean() > 0.98


@pytest.mark.parametrize("name", ["untied-biased", "experts"])
def test_distillation_lowers_the_error_and_leaves_the_model_as_it_was(name: str) -> None:
    model = build(CONFIGS[name])
    before = {key: linear.dequantize() for key, linear in model.linears.items()}
    options = {"attention_bits": 4, "mlp_bits": 4, "learning_rate": 2e-4, "batch": 3}
    rounded = prepare(model, [technique(**options)])
    learned = prepare(model, [technique(**options, steps=12)], calibration=TEXT)
    assert all(np.array_equal(before[key], model.linears[key].dequantize()) for key in before)
    assert labels(learned) == labels(rounded) and learned.nbytes == rounded.nbytes
    wanted = states(model)
    apart = [np.square(states(own) - wanted).mean() for own in (learned, rounded)]
    assert apart[0] < 0.9 * apart[1]
    assert "[numbers:3x12:" in learned.version and "[" not in rounded.version
    reports = {entry.name: entry for entry in learned.report}
    assert reports["layers.0.mlp.up" if name == "untied-biased" else "layers.1.mlp.shared.up"].error > 0


def states(model: Model) -> Floats:
    """Behind the first layer, on the text: a token that goes to other experts later hides what was learned."""
    decoder = build_reference(model).decoder
    with torch.no_grad():
        rows = [decoder.embed(row) for row in torch.from_numpy(TEXT.sequences)]
        made = [decoder.layer(0, row, torch.arange(len(row)), causal(model.config)) for row in rows]
    return torch.stack(made).numpy()


def test_random_tokens_need_no_text(plain: Model) -> None:
    first, again = (prepare(plain, [technique(steps=1, text="random", layers=[0])]) for _ in range(2))
    assert np.array_equal(first.linears["layers.0.mlp.up"].dequantize(), again.linears["layers.0.mlp.up"].dequantize())
    assert first.linears["layers.1.mlp.up"] is plain.linears["layers.1.mlp.up"]
    assert "text=random" in first.version


class Kept(Results):
    """Keeps whole units, as a folder would."""

    def __init__(self) -> None:
        self.open: dict[str, list[Result]] = {}
        self.closed: dict[str, list[Result]] = {}

    def of(self, unit: str) -> list[Result] | None:
        return self.closed.get(unit)

    def keep(self, unit: str, result: Result) -> Result:
        self.open.setdefault(unit, []).append(result)
        return result

    def close(self, unit: str) -> None:
        self.closed[unit] = self.open.pop(unit)


def test_distillation_goes_on_where_it_was_interrupted(plain: Model) -> None:
    options = {"mlp_bits": 4, "steps": 2, "text": "random", "learning_rate": 1e-3}
    whole, kept, calls = prepare(plain, [technique(**options)]), Kept(), []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == 4:  # the last step of the second layer
            raise InterruptedError

    with pytest.raises(InterruptedError):
        prepare(plain, [technique(**options)], results=kept, before=interrupt)
    assert set(kept.closed) == {"layers.0"}
    again = prepare(plain, [technique(**options)], results=kept)
    assert set(kept.closed) == {"layers.0", "layers.1"} and technique(**options).units(plain) == 2
    for name, linear in whole.linears.items():
        assert np.array_equal(again.linears[name].dequantize(), linear.dequantize()), name
    assert again.report == whole.report


def test_what_it_cannot_do_is_told(plain: Model) -> None:
    with pytest.raises(RecipeError, match="option 'mlp_bits'"):
        technique(mlp_bits=3)
    with pytest.raises(RecipeError, match="Did you mean 'steps'"):
        technique(step=3)
    weight = plain.linears["layers.0.attention.value"].dequantize().copy()
    weight[0, 0] = np.nan
    plain.replace("layers.0.attention.value", DenseLinear.from_weight(weight))
    with pytest.raises(KernelError, match="weight rows 0..31 has 1 NaN or infinite value"):
        prepare(plain, [technique()])
    with pytest.raises(KernelError, match=r"'layers.0.attention.value' has 1 NaN or infinite value"):
        prepare(plain, [technique(steps=1, text="random")])
