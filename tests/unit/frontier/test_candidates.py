"""The candidates of `fit`: enough of them, valid, each after its baseline."""

from __future__ import annotations

from thrifty.frontier.candidates import Candidate, Grid, day_one, grouped, of_recipe
from thrifty.recipe import Recipe


def test_there_are_at_least_twelve_with_all_the_day_one_techniques() -> None:
    candidates = day_one(1024)
    assert len(candidates) >= 12
    used = {table["technique"] for one in candidates for table in [*one.recipe.weights, *one.recipe.cache]}
    assert {"rtn", "kivi", "streaming", "snapkv"} <= used
    assert {table["bits"] for one in candidates for table in one.recipe.cache if table["technique"] == "kivi"} == {2, 4}
    assert any(len(one.recipe.cache) > 1 for one in candidates), "a composition"


def test_each_family_starts_with_its_baseline() -> None:
    for off_grid in (False, True):
        family = [one for one in day_one(1024) if (one.grid is Grid.OFF) == off_grid]
        assert family[0].uncompressed
        assert sum(one.uncompressed for one in family) == 1


def test_labels_tell_candidates_of_a_grid_apart() -> None:
    labels = [(one.label, one.grid) for one in day_one(1024)]
    assert len(set(labels)) == len(labels)


def test_rounded_weights_are_labelled_by_their_grid_and_off_grid_is_not_servable() -> None:
    for one in day_one(1024):
        assert one.servable == (one.grid is not Grid.OFF)
        if one.recipe.weights:
            assert one.grid is not Grid.SHIPPED


def test_groups_share_weights() -> None:
    candidates = day_one(1024)
    groups = list(grouped(candidates))
    assert sum(len(group) for group in groups) == len(candidates)
    for group in groups:
        assert len({(str(one.recipe.weights), one.grid is Grid.OFF) for one in group}) == 1
    keys = [group[0].weights_key for group in groups]
    assert len(set(keys)) == len(keys)


def test_a_recipe_of_the_user_is_a_candidate() -> None:
    found = of_recipe(Recipe(weights=[{"technique": "rtn", "bits": 4}]))
    assert found == Candidate(found.recipe, Grid.ON)


def test_what_evicts_leaves_short_prompts_whole() -> None:
    for one in day_one(3838):
        for table in one.recipe.cache:
            assert "keep" not in table
            if table["technique"] in ("snapkv", "ada-kv"):
                assert table["capacity"] == 1856
