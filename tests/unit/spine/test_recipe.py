"""Recipes: strict, readable errors, atomic files."""

from __future__ import annotations

from pathlib import Path

import pytest

from thrifty.errors import RecipeError
from thrifty.recipe import Recipe

TEXT = """
[[weights]]
technique = "rtn"
bits = 4
[[cache]]
technique = "snapkv"
keep = 0.5
[[cache]]
technique = "kivi"
bits = 2
"""


def test_a_recipe_survives_its_file(tmp_path: Path) -> None:
    recipe = Recipe.parse(TEXT)
    recipe.save(tmp_path / "recipe.toml")
    assert Recipe.load(tmp_path / "recipe.toml") == recipe
    assert [type(technique).name for technique in recipe.techniques("cache")] == ["snapkv", "kivi"]


def test_the_label_says_what_was_set() -> None:
    assert Recipe.parse(TEXT).label() == "rtn(bits=4) + snapkv(keep=0.5) + kivi(bits=2)"
    assert Recipe().label() == "as shipped"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[cachee]]\ntechnique = 'kivi'", "unknown stage 'cachee'. Did you mean 'cache'"),
        ("[[cache]]\ntechnique = 'kvi'", "no technique 'kvi'.*Did you mean 'kivi'"),
        ("[[cache]]\ntechnique = 'kivi'\nbitz = 2", "no option 'bitz'. Did you mean 'bits'"),
        ("[[cache]]\ntechnique = 'kivi'\nbits = 3", "option 'bits'.*3"),
        ("[cache]\ntechnique = 'kivi'", "'cache'.*list"),
        ("[[cache]\n", "not valid TOML"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read recipe"):
        Recipe.load(tmp_path / "none.toml")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.toml"
    Recipe.parse(TEXT).save(path)
    before = path.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RecipeError, match="No space left"):
        Recipe().save(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_stage_that_is_no_text_is_refused() -> None:
    with pytest.raises(RecipeError, match="unknown stage '5'"):
        Recipe.from_document({5: []})  # type: ignore[dict-item]
