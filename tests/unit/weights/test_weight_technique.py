"""What the base does for every weight technique, and RTN."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoint import write_checkpoint

from thrifty import registry
from thrifty.api import Thrifty
from thrifty.arrays import Floats
from thrifty.errors import RecipeError
from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear
from thrifty.models import load
from thrifty.models.model import Model
from thrifty.reference.loading import build
from thrifty.weights.structure import LinearInfo, linears
from thrifty.weights.technique import Activations, prepare
from thrifty.weights.techniques.rtn import RoundToNearest

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def rtn(**options: Any) -> Any:
    return registry.build("weights", {"technique": "rtn"} | options)


def logits(model: Model) -> Floats:
    return build(model).logits(TOKENS).numpy()


def labels(model: Model) -> dict[str, str]:
    return {name: linear.label for name, linear in model.linears.items()}


def test_names_layers_and_roles(experts: Model) -> None:
    found = {linear.name: (linear.layer, linear.role) for linear in linears(experts)}
    assert found["embedding"] == (None, "embedding")
    assert found["layers.0.attention.query"] == (0, "query")
    assert found["layers.1.mlp.experts.gate.3"] == (1, "gate")
    assert found["layers.1.mlp.shared_gate"] == (1, "shared_gate")


def test_linears_may_be_exchanged_as_they_come(model: Model) -> None:
    for linear in linears(model):
        zeros = np.zeros((linear.linear.out_features, linear.linear.in_features), np.float32)
        model.replace(linear.name, DenseLinear.from_weight(zeros))
    assert not any(linear.dequantize().any() for linear in model.linears.values())


def test_the_original_stays_and_what_is_untouched_is_shared(model: Model) -> None:
    before = dict(model.linears)
    small = prepare(model, [rtn(layers=[1])])
    assert model.linears == before and list(small.linears) == list(before)
    assert small.norms is model.norms
    for name, linear in small.linears.items():
        assert (linear is before[name]) == (linear.label == "f32"), name
    assert {linear.label for linear in small.linears.values()} == {"f32", "int4-g32"}


def test_rtn_stores_the_layers_and_leaves_the_rest(model: Model) -> None:
    before = logits(model)
    small = prepare(model, [rtn(bits=8)])
    for name, label in labels(small).items():
        role = LinearInfo(name, small.linears[name]).role
        kept = role in ("embedding", "head", "router", "shared_gate")
        assert label == ("f32" if kept else "int8-g32"), name
    assert np.array_equal(logits(model), before)
    after = logits(small)
    assert not np.array_equal(after, before)
    expanded = prepare(small, [rtn(bits=8)])
    for name, linear in small.linears.items():
        expanded.replace(name, DenseLinear.from_weight(linear.dequantize(), bias=linear.bias))
    np.testing.assert_allclose(logits(expanded), after, atol=1e-4)
    assert small.nbytes < model.nbytes
    assert small.version != model.version
    report = {entry.name: entry for entry in small.report}
    assert 0 < report["layers.0.attention.query"].error < 0.01


def test_rtn_rounds_to_the_nearest_of_even_steps(plain: Model) -> None:
    """Group by group, between its least and its greatest number, written out."""
    name, small = "layers.0.attention.query", prepare(plain, [rtn(bits=4, group=32)])
    weight, found = plain.linears[name].dequantize(), small.linears[name].dequantize()
    close = []
    for row in range(len(weight)):
        for first in range(0, weight.shape[1], 32):
            own = weight[row, first : first + 32].astype(np.float64)
            step = (own.max() - own.min()) / 15
            expected = own.min() + step * np.rint((own - own.min()) / step)
            apart = np.abs(found[row, first : first + 32] - expected)
            assert apart.max() < 1.05 * step, "at most a neighbouring step: scales have 16 bits"
            close.append((apart < 0.05 * step).mean())
    assert np.mean(close) > 0.98


def test_fewer_bits_cost_more_and_take_less(plain: Model) -> None:
    reference = logits(plain)
    sizes, errors = [], []
    for options in ({"bits": 8}, {"bits": 4}, {"bits": 4, "group": 128, "symmetric": True}):
        small = prepare(plain, [rtn(**options)])
        sizes.append(small.nbytes)
        errors.append(float(np.linalg.norm(logits(small) - reference)))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


def test_options_choose_layers_names_and_ends(plain: Model) -> None:
    found = labels(prepare(plain, [rtn(layers=[1], skip=["*.down"], embedding_bits=8)]))
    assert found["embedding"] == "int8-g32"
    assert found["layers.0.attention.query"] == "f32"
    assert found["layers.1.attention.query"] == "int4-g32"
    assert found["layers.1.mlp.down"] == "f32"


def test_techniques_act_in_order(plain: Model) -> None:
    found = labels(prepare(plain, [rtn(bits=8), rtn(bits=4, layers=[0])]))
    assert (found["layers.0.mlp.up"], found["layers.1.mlp.up"]) == ("int4-g32", "int8-g32")


def test_biases_survive() -> None:
    weight, bias = np.random.default_rng(0).random((32, 64), np.float32), np.arange(32, dtype=np.float32)
    linear = DenseLinear.from_weight(weight, bias=bias)
    packed = rtn().compress(LinearInfo("layers.0.attention.query", linear), None)
    assert isinstance(packed, GroupLinear)
    assert np.array_equal(packed.bias, bias)


def test_in_place_exchanges_one_layer_at_a_time(plain: Model) -> None:
    expected = logits(prepare(plain, [rtn()]))
    same = prepare(plain, [rtn()], in_place=True)
    assert same is plain
    assert np.array_equal(logits(plain), expected)


def test_options_that_do_not_fit_are_refused(plain: Model) -> None:
    with pytest.raises(RecipeError, match=r"layer 2 is outside 0\.\.1"):
        prepare(plain, [rtn(layers=[2])])
    with pytest.raises(RecipeError, match=r"skip '\*\.dwon' matches no linear layer"):
        prepare(plain, [rtn(skip=["*.dwon"])])
    with pytest.raises(RecipeError, match="option 'bits'"):
        rtn(bits=5)
    with pytest.raises(RecipeError, match="Did you mean 'group'"):
        rtn(groups=32)


def test_a_model_that_is_loaded_for_a_recipe_is_never_held_twice(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[PackedLinear]] = []
    alive: list[int] = []
    compress = RoundToNearest.compress

    def counted(self: RoundToNearest, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        seen.append(weakref.ref(linear.linear))
        alive.append(sum(held() is not None for held in seen))
        return compress(self, linear, calibration)

    monkeypatch.setattr(RoundToNearest, "compress", counted)
    checkpoint = write_checkpoint(tmp_path / "llama")
    recipe = {"weights": [{"technique": "rtn"}]}
    Thrifty(checkpoint, copy=False, recipe=recipe).close()
    assert len(alive) >= 14 and max(alive) <= 2
    alive.clear()
    model = load(checkpoint, copy=False)
    Thrifty(model, recipe=recipe).close()
    assert alive[-1] >= 14, "a model that was brought stays as it is"
