"""`thrifty techniques`: the cards, whole and short."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thrifty import registry
from thrifty.card import Card
from thrifty.errors import RecipeError


def test_json_is_a_list_of_objects_with_exactly_four_fields(thrifty: Callable[..., Any]) -> None:
    found = thrifty("techniques", "--json").json()
    expected = {(stage, name) for stage in registry.STAGES for name in registry.names(stage)}
    assert {(card["stage"], card["name"]) for card in found} == expected
    for card in found:
        assert set(card) == {"name", "stage", "paper", "claim"}
        assert all(isinstance(value, str) and value for value in card.values())


def test_one_technique_has_the_rest_of_its_card(thrifty: Callable[..., Any]) -> None:
    (card,) = thrifty("techniques", "rtn", "--json").json()
    assert card["name"] == "rtn" and card["stage"] == "weights"
    assert card["options"]["bits"] == 4
    assert {"title", "year", "mechanism", "limits"} <= set(card)


@pytest.mark.parametrize(
    ("stage", "name"), [(stage, name) for stage in registry.STAGES for name in registry.names(stage)]
)
def test_what_must_be_set_is_what_a_recipe_cannot_leave_out(stage: str, name: str, thrifty: Callable[..., Any]) -> None:
    (card,) = thrifty("techniques", name, "--json").json()
    try:
        built = registry.build(stage, {"technique": name})
    except RecipeError:
        assert card["required"]
    else:
        assert card["required"] == []
        assert json.loads(json.dumps(dataclasses.asdict(built))) == card["options"]
    out = thrifty("techniques", name).out
    assert ("must be set" in out) == bool(card["required"]) and "required" not in out
    unset = [option for option, value in card["options"].items() if value is None and option not in card["required"]]
    assert out.count("not set by default") == len(unset)


def test_an_option_without_a_default_must_be_set(monkeypatch: pytest.MonkeyPatch, thrifty: Callable[..., Any]) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Demanding:
        """much: how much of it."""

        much: int
        more: int | None = None
        parts: tuple[int, ...] = dataclasses.field(default_factory=lambda: (1, 2))
        card = Card(title="t", paper="p", year=2026, mechanism="m", claim="c")

    monkeypatch.setattr(registry, "load", lambda stage, name: Demanding)
    out = " ".join(thrifty("techniques", "kivi").out.split())
    assert "option much must be set option more not set by default option parts default (1, 2)" in out
    assert "options much: how much of it." in out
    assert registry.describe("cache", "kivi")["required"] == ["much"]


def test_the_table_names_every_technique(thrifty: Callable[..., Any]) -> None:
    out = thrifty("techniques").out
    for stage in registry.STAGES:
        for name in registry.names(stage):
            assert name in out
    assert "RoundToNearest" not in out


def test_a_stage(thrifty: Callable[..., Any]) -> None:
    assert {card["stage"] for card in thrifty("techniques", "--stage", "weights", "--json").json()} == {"weights"}
    found = thrifty("techniques", "--stage", "weight")
    assert found.code == 2
    assert "no stage 'weight'. Did you mean 'weights'?" in found.message


def test_an_unknown_name_gets_the_nearest(thrifty: Callable[..., Any]) -> None:
    found = thrifty("techniques", "rtnn")
    assert found.code == 2
    assert "no technique 'rtnn' of that name. Did you mean 'rtn'?" in found.message
    assert (
        f"no technique 'kivi' of stage weights. Known: {', '.join(registry.names('weights'))}."
        in thrifty("techniques", "kivi", "--stage", "weights").message
    )


def test_a_recipe_lists_what_it_uses(thrifty: Callable[..., Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[weights]]\ntechnique = "rtn"\nbits = 4\n')
    assert [card["name"] for card in thrifty("techniques", "--recipe", recipe, "--json").json()] == ["rtn"]


def test_a_bad_recipe_is_one_message(thrifty: Callable[..., Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[weights]]\ntechnique = "rnt"\n')
    found = thrifty("techniques", "--recipe", recipe)
    assert found.code == 1
    assert "no technique 'rnt' for stage 'weights'. Did you mean 'rtn'?" in found.message
    assert "cannot read recipe" in thrifty("techniques", "--recipe", tmp_path / "none.toml").message
