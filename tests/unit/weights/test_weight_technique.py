"""What the base does for every weight technique, and RTN."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from thrifty import registry
from thrifty.errors import CheckpointError, RecipeError
from thrifty.formats.linear import DenseLinear, GroupLinear
from thrifty.models.decoder import Decoder
from thrifty.models.model import Model
from thrifty.weights.structure import LinearInfo, linears, share
from thrifty.weights.technique import prepare

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def rtn(**options: Any) -> Any:
    return registry.build("weights", {"technique": "rtn"} | options)


def labels(model: Model) -> dict[str, str]:
    return {linear.name: linear.linear.label for linear in linears(model.decoder)}


def test_names_layers_and_roles(experts: Model) -> None:
    found = {linear.name: (linear.layer, linear.role) for linear in linears(experts.decoder)}
    assert found["embedding"] == (None, "embedding")
    assert found["layers.0.attention.query"] == (0, "query")
    assert found["layers.1.mlp.experts.gate.3"] == (1, "gate")
    assert found["layers.1.mlp.shared_gate"] == (1, "shared_gate")


def test_an_unloaded_model_is_refused(plain: Model) -> None:
    with pytest.raises(CheckpointError, match="load the model before"):
        list(linears(Decoder(plain.config)))


def test_sharing_keeps_the_original(model: Model) -> None:
    before = model.logits(TOKENS)
    twin = share(model.decoder)
    pointers = {name: tensor.data_ptr() for name, tensor in model.decoder.state_dict().items()}
    assert {name: tensor.data_ptr() for name, tensor in twin.state_dict().items()} == pointers
    for linear in linears(twin):
        zeros = torch.zeros(linear.linear.out_features, linear.linear.in_features)
        twin.replace(linear.name, DenseLinear.from_weight(zeros))
    assert torch.equal(model.logits(TOKENS), before)


def test_rtn_stores_the_layers_and_leaves_the_rest(model: Model) -> None:
    before = model.logits(TOKENS)
    small = prepare(model, [rtn(bits=8)])
    for name, label in labels(small).items():
        role = LinearInfo(name, small.decoder.get_submodule(name)).role  # type: ignore[arg-type]
        kept = role in ("embedding", "head", "router", "shared_gate")
        assert label == ("f32" if kept else "int8-g32"), name
    assert torch.equal(model.logits(TOKENS), before)
    after = small.logits(TOKENS)
    assert not torch.equal(after, before)
    expanded = share(small.decoder)
    for linear in linears(small.decoder):
        expanded.replace(linear.name, DenseLinear.from_weight(linear.linear.dequantize(), bias=linear.linear.bias))
    assert torch.allclose(dataclasses.replace(small, decoder=expanded).logits(TOKENS), after, atol=1e-4)
    assert small.nbytes < model.nbytes
    assert small.version != model.version
    report = {entry.name: entry for entry in small.report}
    assert 0 < report["layers.0.attention.query"].error < 0.01


def test_fewer_bits_cost_more_and_take_less(plain: Model) -> None:
    reference = plain.logits(TOKENS)
    sizes, errors = [], []
    for options in ({"bits": 8}, {"bits": 4}, {"bits": 4, "group": 128, "symmetric": True}):
        small = prepare(plain, [rtn(**options)])
        sizes.append(small.nbytes)
        errors.append(float((small.logits(TOKENS) - reference).norm()))
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
    weight, bias = torch.randn(32, 64), torch.randn(32)
    linear = DenseLinear.from_weight(weight, bias=bias)
    packed = rtn().compress(LinearInfo("layers.0.attention.query", linear), None)
    assert isinstance(packed, GroupLinear)
    assert torch.equal(packed.bias, bias)
    assert not packed.bias.requires_grad


def test_in_place_exchanges_one_layer_at_a_time(plain: Model) -> None:
    expected = prepare(plain, [rtn()]).logits(TOKENS)
    same = prepare(plain, [rtn()], in_place=True)
    assert same is plain
    assert torch.equal(plain.logits(TOKENS), expected)


def test_options_that_do_not_fit_are_refused(plain: Model) -> None:
    with pytest.raises(RecipeError, match=r"layer 2 is outside 0\.\.1"):
        prepare(plain, [rtn(layers=[2])])
    with pytest.raises(RecipeError, match=r"skip '\*\.dwon' matches no linear layer"):
        prepare(plain, [rtn(skip=["*.dwon"])])
    with pytest.raises(RecipeError, match="option 'bits'"):
        rtn(bits=3)
    with pytest.raises(RecipeError, match="Did you mean 'group'"):
        rtn(groups=32)
