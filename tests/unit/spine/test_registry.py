"""The registry: lazy, without a second list, with errors that name the nearest technique."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import subprocess
import sys

import pytest

from thrifty import registry
from thrifty.card import Card
from thrifty.errors import RecipeError, nearest

CARD = Card(title="A title", paper="0000.00000", year=2024, mechanism="It does.", claim="2x")


def test_names_are_found_without_importing_the_techniques() -> None:
    program = (
        "import sys; from thrifty import registry; names = registry.names('cache');"
        "assert 'kivi' in names, names; assert 'torch' not in sys.modules;"
        "assert 'thrifty.cache.policies.kivi' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_loading_one_technique_imports_only_its_module() -> None:
    program = (
        "import sys; from thrifty import registry; registry.load('cache', 'kivi');"
        "assert 'thrifty.cache.policies.snapkv' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("stage", "name"), [(stage, name) for stage in registry.STAGES for name in registry.names(stage)]
)
def test_every_technique_is_described_by_its_card(stage: str, name: str) -> None:
    described = registry.describe(stage, name)
    assert described["name"] == name and described["stage"] == stage
    assert described["paper"] and described["claim"] and 1900 < described["year"] < 2100


def test_unknown_technique_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'kivi'"):
        registry.load("cache", "kvi")


def test_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'cache'"):
        registry.names("cach")


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="no option 'bit'. Did you mean 'bits'"):
        registry.build("cache", {"technique": "kivi", "bit": 2})


def test_bad_option_value_names_option_and_value() -> None:
    with pytest.raises(RecipeError, match="option 'bits'.*'two'"):
        registry.build("cache", {"technique": "kivi", "bits": "two"})


def test_a_table_without_a_technique_is_refused() -> None:
    with pytest.raises(RecipeError, match="has no technique name"):
        registry.build("cache", {"bits": 2})


def test_two_owners_of_one_name_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("cache.kivi", "elsewhere:Kivi", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    with pytest.raises(RecipeError, match="'kivi' of stage 'cache' is registered twice"):
        registry.names("cache")


def test_two_outside_owners_of_one_name_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        importlib.metadata.EntryPoint("cache.mine", f"{package}:Mine", registry.ENTRY_POINT_GROUP)
        for package in ("first", "second")
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    with pytest.raises(RecipeError, match="by first:Mine and by second:Mine"):
        registry.names("cache")


def test_a_technique_must_be_a_dataclass() -> None:
    with pytest.raises(TypeError, match="must be a dataclass"):

        @registry.technique(stage="cache", card=CARD)
        class Plain:
            pass


def test_a_technique_must_name_a_known_stage() -> None:
    with pytest.raises(ValueError, match="Did you mean 'cache'"):

        @registry.technique(stage="cash", card=CARD)
        @dataclasses.dataclass(frozen=True)
        class Misplaced:
            pass


def test_an_empty_card_field_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Card\.claim is empty"):
        Card(title="A title", paper="x", year=2024, mechanism="It does.", claim=" ")


def test_nearest_lists_all_when_nothing_is_close() -> None:
    assert nearest("zzzz", ["full", "kivi"]) == "Known: full, kivi."
