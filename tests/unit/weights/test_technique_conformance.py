"""What every weight technique must do, found by its file: a result that native code runs, that goes into a folder and
back, and that is the same after an interruption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.weights.conftest import CONFIGS, build

from thrifty import registry
from thrifty.errors import RecipeError
from thrifty.models.config.model_config import RopeConfig
from thrifty.models.loading import load
from thrifty.models.model import Model
from thrifty.recipe import Recipe
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.compressing.pipeline import compress
from thrifty.weights.technique import prepare

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "compactifai": {"healing": 2, "batch": 1},
    "lora-ft": {"steps": 2, "batch": 1},
    "maskllm": {"steps": 2, "batch": 1},
    "nxmiformer": {"steps": 2, "batch": 1},
    "smoothquant-plus": {"alpha": 0.5},
    "xtc": {"steps": 2, "batch": 1},
    "zeroquant": {"steps": 1, "mlp_bits": 4},
}
"""By technique: options that make it quick on a tiny model; its defaults where there are none."""
SHAPES = ("plain", "experts")  # tried in this order, until one has what the technique needs
TEXT = CalibrationSet("tiny", np.arange(48).reshape(3, 16))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=registry.names("weights"))
def table(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"technique": request.param, **OPTIONS.get(request.param, {})}


def tiny(table: Mapping[str, Any]) -> Model:
    """A model that has what a technique needs: hidden size 128, heads of 32."""
    refused: list[str] = []
    for shape in SHAPES:
        layers = tuple(dataclasses.replace(layer, rope=RopeConfig(1e4, 32)) for layer in CONFIGS[shape].layers)
        model = build(dataclasses.replace(CONFIGS[shape], hidden_size=128, head_dim=32, layers=layers))
        try:
            registry.build("weights", table).check(model)
        except RecipeError as error:
            refused.append(str(error))
            continue
        return model
    raise AssertionError(f"no tiny model suits {table['technique']}: {refused}")


def text_of(table: Mapping[str, Any]) -> CalibrationSet | None:
    return TEXT if registry.build("weights", table).needs_calibration else None


def same(left: Model, right: Model) -> None:
    assert left.config == right.config and list(left.linears) == list(right.linears)
    for name, linear in left.linears.items():
        assert linear.meta() == right.linears[name].meta(), name
        for key, array in linear.state().items():
            np.testing.assert_array_equal(array.view(np.uint8), right.linears[name].state()[key].view(np.uint8))
    assert left.norms.keys() == right.norms.keys()
    for name, norm in left.norms.items():
        np.testing.assert_array_equal(norm, right.norms[name])


def test_the_result_runs_natively(table: dict[str, Any]) -> None:
    before = tiny(table)
    after = prepare(before, [registry.build("weights", table)], calibration=text_of(table))
    changed = {name: linear for name, linear in after.linears.items() if linear is not before.linears.get(name)}
    assert changed or after.config != before.config, "it changes something"
    for name, linear in changed.items():
        assert linear.native() is not None, f"{name} ({linear.label}) has no native layout"


def test_the_result_goes_into_a_folder_and_back(table: dict[str, Any], tmp_path: Path) -> None:
    expected = prepare(tiny(table), [registry.build("weights", table)], calibration=text_of(table))
    told = compress(tiny(table), Recipe(weights=[table]), tmp_path / "out", calibration=text_of(table))
    read = load(tmp_path / "out")
    same(read, expected)
    assert told["totals"]["bytes"] == expected.nbytes


def test_an_interruption_changes_nothing(table: dict[str, Any], tmp_path: Path) -> None:
    recipe, text = Recipe(weights=[table]), text_of(table)
    steps: list[int] = []
    compress(tiny(table), recipe, tmp_path / "whole", calibration=text, watch=lambda done, _: steps.append(done))

    def stop(done: int, total: int) -> None:
        if done == max(1, len(steps) // 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(tiny(table), recipe, tmp_path / "out", calibration=text, watch=stop)
    told = compress(tiny(table), recipe, tmp_path / "out", calibration=text)
    assert told["run"]["resumed"]
    for name in ("model.safetensors", "config.json", "recipe.toml"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
