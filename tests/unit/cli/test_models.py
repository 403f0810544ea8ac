"""`thrifty models --check`: every byte of the converted copies is read, and damaged ones go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from thrifty.models.loading import load


def test_a_damaged_copy_is_named_and_removed(thrifty: Callable[..., Any], checkpoint: Path, cache: Path) -> None:
    load(checkpoint)
    (weights,) = cache.glob("converted/*/weights.bin")
    outcome = thrifty("models", "--check", "--json")
    assert [entry["faults"] for entry in outcome.json()] == [[], []]
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    outcome = thrifty("models", "--check", "--json")
    assert [(entry["faults"], entry["removed"]) for entry in outcome.json()] == [
        (["embedding/weight"], True),
        ([], False),
    ]
    assert not weights.exists()
    assert "sound" in thrifty("models", "--check").out
    load(checkpoint)
    assert weights.exists()


def test_check_and_recipe_are_two_questions(thrifty: Callable[..., Any], cache: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[weights]]\ntechnique = "rtn"\n')
    outcome = thrifty("models", "--check", "--recipe", recipe)
    assert outcome.code != 0
    assert "--check looks at the cache, --recipe at models: give one of them" in outcome.message
