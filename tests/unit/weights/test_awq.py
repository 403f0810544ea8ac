"""AWQ's two searches against brute force, and what it does to a model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.unit.weights.conftest import PLAIN
from tests.unit.weights.conftest import build as build_model

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.errors import KernelError, RecipeError, ThriftyWarning
from thrifty.formats.linear import DenseLinear, GroupLinear
from thrifty.models.model import Model
from thrifty.reference.loading import build
from thrifty.weights.calibration import Activations, CalibrationSet
from thrifty.weights.compressing.prediction import disk_bytes, steps
from thrifty.weights.grid import Grid
from thrifty.weights.groups import groups
from thrifty.weights.results import Result, Results
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.awq import CutRounding, cut, factors_of, search

RANDOM = np.random.default_rng(3)
INPUTS = RANDOM.standard_normal((120, 80), np.float32) * np.exp2(RANDOM.integers(-3, 4, 80)).astype(np.float32)
WEIGHTS = [RANDOM.standard_normal((rows, 80), np.float32) for rows in (6, 9)]
TEXT = CalibrationSet("numbers", np.random.default_rng(2).integers(0, 50, (4, 24)))


def awq(**options: Any) -> Any:
    return registry.build("weights", {"technique": "awq"} | options)


def logits(model: Model) -> Floats:
    return np.concatenate([build(model).logits(tokens).numpy() for tokens in TEXT.sequences.tolist()])


def nearest(weight: Floats, group: int = 32) -> Floats:
    return GroupLinear.quantize(weight, 4, group).dequantize().astype(np.float64)


def test_the_factors_are_the_best_of_twenty() -> None:
    sizes = np.abs(INPUTS.astype(np.float64)).mean(axis=0)
    errors = []
    for step in range(20):
        factors = sizes ** (step / 20)
        factors /= np.sqrt(factors.max() * factors.min())
        errors.append(0.0)
        for weight in WEIGHTS:
            scaled = nearest((weight * factors).astype(np.float32)) / factors
            errors[-1] += float(np.square(INPUTS @ scaled.T - INPUTS @ weight.T).sum())
    best = int(np.argmin(errors))
    assert best > 0 and errors[best] < 0.9 * errors[0], "the test's inputs are worth a scale"
    assert np.allclose(search(WEIGHTS, INPUTS, Grid(4, 32)), factors_of(sizes.astype(np.float32), best / 20), rtol=1e-5)


def test_inputs_of_one_size_move_nothing() -> None:
    assert search(WEIGHTS, np.sign(INPUTS), Grid(4, 32)) is None


def test_factors_are_centred_and_never_zero() -> None:
    factors = factors_of(np.array([0.0, 1.0, 4.0], np.float32), 0.5)
    assert np.allclose(factors, np.array([1e-4, 1.0, 2.0]) / np.sqrt(2e-4), rtol=1e-5)


def test_a_group_is_cut_where_its_part_of_the_outputs_loses_least() -> None:
    """80 columns in groups of 32: the last group is a short one."""
    weight = RANDOM.standard_t(3, (7, 80)).astype(np.float32)
    own = cut(weight, INPUTS, Grid(4, 32))
    shares = []
    for row in range(7):
        for first in range(0, 80, 32):
            values, inputs = weight[row, first : first + 32], INPUTS[:, first : first + 32].astype(np.float64)
            errors = {}
            for step in range(10):
                bound = float(np.abs(values).max() * np.float32(1 - step / 20))
                rounded = nearest(np.clip(values, -bound, bound)[None])[0]
                errors[bound] = float(np.square(inputs @ (rounded - values)).sum())
            best = min(errors, key=errors.__getitem__)
            chosen = float(np.abs(own[row, first : first + 32]).max())
            assert errors[min(errors, key=lambda bound: abs(bound - chosen))] <= errors[best] * 1.001
            assert np.array_equal(
                own[row, first : first + 32], np.clip(values, -np.float32(chosen), np.float32(chosen))
            )
            shares.append(chosen / np.abs(values).max())
    assert 0.55 - 1e-6 <= min(shares) < 0.9, "some group is cut"


def test_queries_and_keys_are_not_cut() -> None:
    technique = CutRounding(bits=4, group=32, clip=True)
    weight = RANDOM.standard_t(3, (7, 80)).astype(np.float32)
    for role, is_cut in (("query", False), ("key", False), ("value", True)):
        linear = LinearInfo(f"layers.0.attention.{role}", DenseLinear.from_weight(weight))
        stored = technique.compress(linear, Activations(INPUTS))
        assert np.array_equal(stored.dequantize(), nearest(weight)) == (not is_cut), role


@pytest.mark.filterwarnings("ignore:no token of the calibration text")
def test_every_linear_of_the_layers_is_stored(model: Model) -> None:
    """In all shapes of models: of experts too, and readers behind no norm."""
    before, kept = logits(model), ("embedding", "head", "router", "shared_gate")
    small = prepare(model, [awq()], calibration=TEXT)
    for name, linear in small.linears.items():
        assert linear.label == ("f32" if LinearInfo(name, linear).role in kept else "int4-g32"), name
    assert small.nbytes == prepare(model, [registry.build("weights", {"technique": "rtn"})]).nbytes
    assert np.array_equal(logits(model), before), "the given model stays"
    assert np.linalg.norm(logits(small) - before) < 0.5 * np.linalg.norm(before)
    assert "+awq(" in small.version and "[numbers:4x24:" in small.version
    assert all(0 < entry.error < 0.2 for entry in small.report if entry.format == "int4-g32")


def salient(model: Model) -> Model:
    """Some channels of the hidden state are large, as in trained models."""
    large = np.ones(model.config.hidden_size, np.float32)
    large[::17] = 12.0
    for group in groups(model):
        if group.kind == "norm":
            model.norms = {**model.norms, group.source.name: model.norms[group.source.name] * large}
    return model


def test_channels_that_are_large_lose_less() -> None:
    model = salient(build_model(PLAIN))
    expected = logits(model)
    small = prepare(model, [awq()], calibration=TEXT)
    rounded = prepare(model, [registry.build("weights", {"technique": "rtn"})])
    assert any(not np.array_equal(small.norms[name], norm) for name, norm in model.norms.items()), "factors moved"
    assert np.linalg.norm(logits(small) - expected) < 0.9 * np.linalg.norm(logits(rounded) - expected)


def test_values_move_only_where_each_has_one_reader() -> None:
    """With query heads that share a value head nothing moves there."""
    for kv_heads, moves in ((2, False), (4, True)):
        model = build_model(dataclasses.replace(PLAIN, kv_heads=kv_heads))
        value = next(group for group in groups(model) if group.kind == "value")
        large = np.ones(value.source.linear.out_features, np.float32)  # type: ignore[union-attr]
        large[::5] = 16.0
        inputs = RANDOM.standard_normal((50, len(value.channels)), np.float32) * large[value.channels]
        assert (awq().factors(value, Activations(inputs)) is not None) == moves


def test_layers_and_skip_leave_linears_alone(plain: Model) -> None:
    small = prepare(plain, [awq(layers=[1], skip=["*.down"])], calibration=TEXT)
    changed = {name for name, linear in small.linears.items() if linear is not plain.linears[name]}
    assert changed == {
        f"layers.1.{name}"
        for name in ("attention.query", "attention.key", "attention.value", "attention.output", "mlp.gate", "mlp.up")
    }
    with pytest.raises(RecipeError, match=r"skip '\*.dwon' matches no linear layer"):
        prepare(plain, [awq(skip=["*.dwon"])], calibration=TEXT)


def test_an_expert_without_tokens_is_told_and_a_broken_layer_refused(plain: Model) -> None:
    linear = LinearInfo("layers.1.mlp.experts.up.3", DenseLinear.from_weight(WEIGHTS[0]))
    with pytest.warns(ThriftyWarning, match="no token of the calibration text reached"):
        stored = awq().storage().compress(linear, Activations(np.empty((0, 80), np.float32)))
    assert np.array_equal(stored.dequantize(), nearest(WEIGHTS[0]))
    weight = plain.linears["layers.0.mlp.up"].dequantize()
    weight[3, 4] = np.nan
    plain.replace("layers.0.mlp.up", DenseLinear.from_weight(weight))
    with pytest.raises((KernelError, RecipeError), match=r"layers\.0\.mlp\.(up|down)' .*NaN or infinite value"):
        prepare(plain, [awq()], calibration=TEXT)


class Kept(Results):
    """Results of an earlier run, in memory. made: by unit."""

    def __init__(self, made: dict[str, list[Result]]) -> None:
        self.earlier, self.new = made, dict[str, list[Result]]()

    def of(self, unit: str) -> list[Result] | None:
        return self.earlier.get(unit)

    def keep(self, unit: str, result: Result) -> Result:
        self.new.setdefault(unit, []).append(result)
        return result


def test_a_layer_that_was_made_before_is_not_made_again() -> None:
    model = salient(build_model(PLAIN))
    first = Kept({})
    whole = prepare(model, [awq()], calibration=TEXT, results=first)
    assert list(first.new) == ["layers.0", "layers.1"]
    second = Kept({"layers.0": first.new["layers.0"]})
    again = prepare(model, [awq()], calibration=TEXT, results=second)
    assert list(second.new) == ["layers.1"]
    assert again.report == whole.report and again.norms.keys() == whole.norms.keys()
    assert all(np.array_equal(again.norms[name], norm) for name, norm in whole.norms.items())
    for name, linear in whole.linears.items():
        assert all(np.array_equal(again.linears[name].state()[key], own) for key, own in linear.state().items()), name


def test_what_it_takes_is_told_before(plain: Model) -> None:
    """A step for each layer; on the disk the stored layers, not those in fp32 that are held meanwhile."""
    small = prepare(plain, [awq()], calibration=TEXT)
    stored = sum(linear.nbytes for name, linear in small.linears.items() if name != "embedding")
    assert steps(plain, awq()) == 3 and steps(plain, awq(layers=[1])) == 2
    assert disk_bytes(plain, [awq()]) == small.nbytes + stored
