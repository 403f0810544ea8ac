"""LoRA-FT: what is trained, what is stored, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.weights.conftest import CONFIGS, build

from thrifty import registry
from thrifty.errors import RecipeError, ThriftyError
from thrifty.formats.dense import DenseLinear
from thrifty.formats.group import GroupLinear
from thrifty.formats.low_rank import LowRankLinear
from thrifty.models.config.model_config import RopeConfig
from thrifty.models.model import Model
from thrifty.reference.loading import build as build_reference
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.results import Results
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.lora_ft import beside

TEXT = CalibrationSet("tiny", np.arange(48).reshape(3, 16))
NEAREST = {"technique": "rtn", "bits": 2}


def tiny() -> Model:
    layers = tuple(dataclasses.replace(layer, rope=RopeConfig(1e4, 32)) for layer in CONFIGS["plain"].layers)
    return build(dataclasses.replace(CONFIGS["plain"], hidden_size=128, head_dim=32, layers=layers))


@pytest.fixture
def plain() -> Model:
    return tiny()


def prepared(model: Model, *tables: dict[str, Any]) -> Model:
    return prepare(model, [registry.build("weights", table) for table in tables], calibration=TEXT)


def lora(**options: Any) -> dict[str, Any]:
    return {"technique": "lora-ft", "steps": 12, "batch": 3, "rate": 0.01, "dropout": 0.0, **options}


def loss(model: Model) -> float:
    """Of the next token of the text, in nats, by log-softmax written out."""
    reference, total, count = build_reference(model), 0.0, 0
    for tokens in TEXT.sequences:
        logits = np.asarray(reference.logits(tokens), np.float64)
        for place in range(len(tokens) - 1):
            row = logits[place]
            total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[tokens[place + 1]]
            count += 1
    return total / count


def test_a_stored_linear_is_the_rounded_one_plus_the_product() -> None:
    random = np.random.default_rng(0)
    weight, bias = random.standard_normal((48, 64), np.float32), random.standard_normal(48, np.float32)
    down, up = random.standard_normal((32, 64), np.float32), random.standard_normal((48, 32), np.float32)
    rounded = GroupLinear.quantize(weight, 4, 32)
    rounded.set_bias(bias)
    stored = beside(rounded, down, up)
    expected = rounded.dequantize().astype(np.float64)
    for row in range(48):
        for column in range(64):
            expected[row, column] += sum(float(up[row, k]) * float(down[k, column]) for k in range(32))
    np.testing.assert_allclose(stored.dequantize(), expected, rtol=0.02, atol=0.15)  # the factors are bf16
    np.testing.assert_array_equal(stored.bias, bias)
    assert stored.base.bias is None and rounded.bias is not None, "the given layer stays as it is"


def test_the_codes_stay_and_the_text_is_learned(plain: Model) -> None:
    nearest, repaired = prepared(plain, NEAREST), prepared(plain, NEAREST, lora())
    assert loss(repaired) < loss(nearest) - 0.05
    for name, linear in repaired.linears.items():
        if isinstance(linear, LowRankLinear):
            for key, array in linear.base.state().items():
                np.testing.assert_array_equal(array, nearest.linears[name].state()[key])
    kinds = {type(linear) for name, linear in repaired.linears.items() if "attention" in name or "mlp" in name}
    assert kinds == {LowRankLinear}
    entries = {entry.name: entry for entry in repaired.report}
    assert all(entries[name].nbytes == linear.nbytes for name, linear in repaired.linears.items() if name in entries)


def test_bytes_tell_the_additions(plain: Model) -> None:
    nearest, repaired = prepared(plain, NEAREST), prepared(plain, NEAREST, lora(rank=64))
    more = sum(
        2 * 64 * (linear.in_features + linear.out_features)
        for linear in repaired.linears.values()
        if isinstance(linear, LowRankLinear)
    )
    assert repaired.nbytes - nearest.nbytes >= more > 0


def test_layers_and_skip_leave_linears_as_they_are(plain: Model) -> None:
    nearest = prepared(plain, NEAREST)
    repaired = prepared(plain, NEAREST, lora(layers=(0,), skip=("*.down",)))
    changed = {name for name, linear in repaired.linears.items() if isinstance(linear, LowRankLinear)}
    assert changed and all(name.startswith("layers.0.") and not name.endswith(".down") for name in changed)
    assert repaired.linears["layers.1.mlp.up"].label == nearest.linears["layers.1.mlp.up"].label


def test_a_second_product_and_an_empty_choice_are_refused(plain: Model) -> None:
    with pytest.raises(RecipeError, match="has a product of low rank already .* and has room for one"):
        prepared(plain, NEAREST, lora(), lora())
    with pytest.raises(RecipeError, match="leave no linear to train"):
        prepared(plain, NEAREST, lora(skip=("layers.*",)))
    with pytest.raises(RecipeError, match="rank"):
        registry.build("weights", lora(rank=8))


def test_a_layer_of_nan_ends_the_training_with_a_reason(plain: Model) -> None:
    name = "layers.0.mlp.up"
    weight = plain.linears[name].dequantize().copy()
    weight[0, 0] = np.nan
    plain.linears[name] = DenseLinear.from_weight(weight)
    with pytest.raises(ThriftyError, match=r"(?i)nan|finite"):
        prepared(plain, lora())


@pytest.mark.long
def test_a_killed_training_goes_on_to_the_same_bits(plain: Model, tmp_path: Path) -> None:
    options = [registry.build("weights", table) for table in (NEAREST, lora(steps=25))]
    whole = prepare(plain, options, calibration=TEXT)
    results = Results()
    results.folder = tmp_path
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 14 + 22:  # fourteen linears are rounded first
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(plain, options, calibration=TEXT, before=stop, results=results)
    assert len(list(tmp_path.iterdir())) == 1
    calls = 100
    resumed = prepare(plain, options, calibration=TEXT, before=stop, results=results)
    assert calls == 100 + 14 + 5, "20 of 25 steps were on the disk"
    for name, linear in whole.linears.items():
        assert np.array_equal(linear.dequantize(), resumed.linears[name].dequantize()), name
