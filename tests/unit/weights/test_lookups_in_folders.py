"""What SqueezeLLM and VPTQ make goes into a folder, comes back, and survives a stop in the middle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.unit.weights.conftest import PLAIN, build

from thrifty.formats.linear import PackedLinear
from thrifty.models.loading import load
from thrifty.recipe import Recipe
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.compressing.pipeline import compress
from thrifty.weights.technique import prepare

TEXT = CalibrationSet("numbers", np.array([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]], np.int64))
RECIPES = {
    "squeezellm": {"technique": "squeezellm", "bits": 3, "outliers": 0.01, "sensitive": 0.01},
    "vptq": {"technique": "vptq", "k": 16, "k_residual": 16, "outliers": 0.05, "skip": ["*.down", "*.gate"]},
}


def same(found: dict[str, PackedLinear], expected: dict[str, PackedLinear]) -> None:
    for name, linear in expected.items():
        assert found[name].label == linear.label, name
        for key, array in linear.state().items():
            assert np.array_equal(found[name].state()[key], array), (name, key)


@pytest.mark.parametrize("name", RECIPES)
def test_a_folder_holds_what_prepare_makes_also_after_a_stop(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    recipe = Recipe(weights=[RECIPES[name]])
    expected = prepare(build(PLAIN), recipe.techniques("weights"), calibration=TEXT)

    whole: list[int] = []

    def stop(done: int, total: int) -> None:
        whole.append(total)
        if done == total // 2:
            raise KeyboardInterrupt

    target = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        compress(build(PLAIN), recipe, target, calibration=TEXT, watch=stop)
    left: list[int] = []
    compress(build(PLAIN), recipe, target, calibration=TEXT, watch=lambda done, total: left.append(total))
    assert left[0] < whole[0], "what was made before is not made again"
    same(load(target).linears, expected.linears)
