"""Bytes that are told before a model is compressed are those that it has afterwards."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.unit.weights.conftest import CONFIGS, build

from thrifty import models
from thrifty.errors import RecipeError
from thrifty.evaluation.roofline import sizes
from thrifty.frontier.made_weights import MADE
from thrifty.frontier.predict import as_stored
from thrifty.models.config.model_config import RopeConfig
from thrifty.models.model import Model
from thrifty.recipe import Recipe
from thrifty.weights.calibration import CalibrationSet, default_calibration
from thrifty.weights.technique import prepare

TEXT = CalibrationSet("tiny", np.arange(48).reshape(3, 16))
TABLES: list[dict[str, Any]] = [
    *(dict(table) for table in MADE),
    {"technique": "awq", "layers": [1]},
    {"technique": "awq", "skip": ["layers.0.mlp.down"]},
    {"technique": "squeezellm", "outliers": 0.0, "sensitive": 0.0},
    {"technique": "squeezellm", "bits": 4, "outliers": 0.03, "sensitive": 0.013},
    {"technique": "smoothquant-plus", "bits": 8, "group": 32},
    {"technique": "vptq", "v": 4, "k": 16, "k_residual": 16, "outliers": 0.1},
]
QUICK: dict[str, dict[str, Any]] = {"vptq": {"k": 16}, "smoothquant-plus": {"alpha": 0.5}}
"""Options that make a technique quick on a tiny model."""


def tiny(shape: str) -> Model:
    layers = tuple(dataclasses.replace(layer, rope=RopeConfig(1e4, 32)) for layer in CONFIGS[shape].layers)
    return build(dataclasses.replace(CONFIGS[shape], hidden_size=128, head_dim=32, layers=layers))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: "-".join(str(value) for value in table.values()))
@pytest.mark.parametrize("shape", ["plain", "untied-biased", "experts"])
def test_bytes_and_formats_are_those_that_were_predicted(shape: str, table: dict[str, Any]) -> None:
    model = tiny(shape)
    (technique,) = Recipe(weights=[table | QUICK.get(table["technique"], {})]).techniques("weights")
    try:
        technique.check(model)
    except RecipeError as error:
        pytest.skip(str(error))
    predicted = as_stored(sizes.of_model(model), [technique])
    assert predicted == sizes.of_model(prepare(model, [technique], calibration=TEXT))
    assert predicted != sizes.of_model(model)


def test_the_output_matrix_behind_another_technique_is_predicted() -> None:
    model = tiny("plain")
    narrow = {"technique": "rtn", "skip": ["layers.*"], "embedding_bits": 4}
    chain = Recipe(weights=[{"technique": "awq"}, narrow]).techniques("weights")
    predicted = as_stored(sizes.of_model(model), chain)
    assert predicted == sizes.of_model(prepare(model, chain, calibration=TEXT))
    assert {linear.label for linear in predicted.linears if linear.layer is None} == {"int4-g32"}


@pytest.mark.long
@pytest.mark.parametrize("name", ["awq", "smoothquant-plus", "squeezellm", "gptq"])
def test_the_bytes_of_a_real_model_are_predicted(name: str) -> None:
    """Of SmolLM2, whose widths of 576, 192 and 1536 no tiny model has; on one sequence, in two layers."""
    model = models.load("smollm2-135m")
    options: dict[str, Any] = {"alpha": 0.5} if name == "smoothquant-plus" else {}
    techniques = Recipe(weights=[{"technique": name, "layers": [0, 29], **options}]).techniques("weights")
    text = default_calibration(model, 1, 32)
    predicted = as_stored(sizes.of_model(model), techniques)
    assert predicted == sizes.of_model(prepare(model, techniques, calibration=text))
