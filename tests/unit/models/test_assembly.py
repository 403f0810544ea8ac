"""Gathering the parts of a model, and putting another linear in the place of one."""

from __future__ import annotations

import numpy as np
import pytest
from tests.tiny import tiny_config, tiny_model

from thrifty.errors import CheckpointError
from thrifty.formats.linear import DenseLinear
from thrifty.models.assembly import Assembly


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_assembly_refuses_what_does_not_fit() -> None:
    assembly = Assembly(tiny_config())
    with pytest.raises(CheckpointError, match="'layers.7.mlp.up' has no place in this tiny model"):
        assembly.put("layers.7.mlp.up", zeros(1))
    with pytest.raises(CheckpointError, match=r"'layers.0.mlp.up' has shape \[3, 4\]; expected \[256, 128\]"):
        assembly.put("layers.0.mlp.up", DenseLinear.from_weight(zeros(3, 4)))
    assembly.put("final_norm", zeros(128))
    with pytest.raises(CheckpointError, match="'final_norm' comes twice"):
        assembly.put("final_norm", zeros(128))
    with pytest.raises(CheckpointError, match=r"lacks 'embedding' \[272, 128\].* and \d+ more"):
        assembly.finish()


def test_a_bias_comes_before_or_after_its_linear_or_with_it() -> None:
    config = tiny_config(attention_bias=True, layers=1)
    parts = tiny_model(config=config)
    biases = ("query", "key", "value")
    assembly = Assembly(config)
    for number, role in enumerate(biases):
        assembly.put(f"layers.0.attention.{role}.bias", np.full(256 if role == "query" else 128, number, np.float32))
    for name, linear in parts.linears.items():
        assembly.put(name, DenseLinear.from_weight(linear.dequantize()))
    for name, norm in parts.norms.items():
        assembly.put(name, norm)
    linears, norms = assembly.finish()
    assert list(linears) == list(parts.linears) and list(norms) == list(parts.norms)
    found = [linears[f"layers.0.attention.{role}"].bias for role in biases]
    assert [None if one is None else set(one) for one in found] == [{0.0}, {1.0}, {2.0}]
    assert linears["layers.0.attention.output"].bias is None


def test_another_linear_takes_a_place_of_its_shape_only() -> None:
    model = tiny_model()
    linear = DenseLinear.from_weight(zeros(256, 128))
    model.replace("layers.1.mlp.up", linear)
    assert model.linears["layers.1.mlp.up"] is linear
    with pytest.raises(CheckpointError, match=r"'final_norm' is not a linear"):
        model.replace("final_norm", linear)
    with pytest.raises(CheckpointError, match=r"has shape \[256, 128\]; this decoder expects \[128, 256\]"):
        model.replace("layers.1.mlp.down", linear)
