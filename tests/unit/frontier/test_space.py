"""The space of `fit`: large enough, joint, valid, the baseline first."""

from __future__ import annotations

import pytest

from thrifty.cache.composition import check_order
from thrifty.frontier.candidates import Candidate, Grid, grouped, of_recipe
from thrifty.frontier.made_weights import COSTS, MADE, SLOW, is_slow, making
from thrifty.frontier.space import BUDGETS, SHARES, off_grid, shortened, space
from thrifty.recipe import Recipe


@pytest.mark.long
@pytest.mark.parametrize("prefix", [1024, 3774])
def test_there_are_at_least_sixty_with_all_the_day_one_techniques(prefix: int) -> None:
    candidates = space(prefix)
    assert len({one.key for one in candidates}) == len(candidates) >= 60
    used = {table["technique"] for one in candidates for table in [*one.recipe.weights, *one.recipe.cache]}
    assert {"rtn", *(table["technique"] for table in MADE), "kivi", *BUDGETS, *SHARES} == used
    for bits in (2, 4, 8):
        assert any({"technique": "kivi", "bits": bits} in one.recipe.cache for one in candidates)
    for one in candidates:
        check_order(one.recipe.techniques("cache"))


def test_bits_are_shared_out_between_weights_and_cache() -> None:
    groups = [group for group in grouped(space(3774)) if len(group) > 10]
    caches = [{str(one.recipe.cache) for one in group} for group in groups]
    assert len(groups) >= 3 and caches[0] == caches[1] == caches[2]


def test_the_baseline_is_first_and_the_only_one() -> None:
    for family in (space(1024), off_grid()):
        assert family[0].uncompressed
        assert sum(one.uncompressed for one in family) == 1


def test_labels_tell_candidates_of_a_grid_apart() -> None:
    labels = [(one.label, one.grid) for one in [*space(1024), *off_grid()]]
    assert len(set(labels)) == len(labels)


def test_rounded_weights_are_labelled_by_their_grid_and_off_grid_is_not_servable() -> None:
    for one in [*space(1024), *off_grid()]:
        assert one.servable == (one.grid is not Grid.OFF)
        if one.recipe.weights:
            assert one.grid is not Grid.SHIPPED


def test_groups_share_weights() -> None:
    candidates = [*space(1024), *off_grid()]
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
    for one in space(3838):
        for table in one.recipe.cache:
            assert "keep" not in table or table["technique"] in SHARES
            if "capacity" in table:
                assert table["capacity"] in (1856, 896, 448)


def test_a_short_run_keeps_the_same_share_in_whole_pages() -> None:
    cache = [{"technique": "snapkv", "capacity": 1856, "window": 16}, {"technique": "kivi", "bits": 2}]
    whole = of_recipe(Recipe(cache=cache))
    assert shortened(whole, 1.0) is whole
    assert shortened(whole, 0.25).recipe.cache == [{"technique": "snapkv", "capacity": 448, "window": 16}, cache[1]]
    assert whole.recipe.cache == cache
    streaming = of_recipe(Recipe(cache=[{"technique": "streaming", "window": 448}]))
    assert shortened(streaming, 0.05).recipe.cache == [{"technique": "streaming", "window": 64}]
    share = of_recipe(Recipe(cache=[{"technique": "snapkv", "keep": 0.5}]))
    assert shortened(share, 0.25).recipe.cache == share.recipe.cache


def test_what_knows_shares_alone_is_the_same_for_a_short_run() -> None:
    for one in space(3838):
        if any(table["technique"] in SHARES for table in one.recipe.cache):
            assert shortened(one, 0.25).recipe.cache == [
                table if table["technique"] in SHARES else shortened(one, 0.25).recipe.cache[place]
                for place, table in enumerate(one.recipe.cache)
            ]
    headkv = of_recipe(Recipe(cache=[{"technique": "headkv", "capacity": 1024}]))
    assert shortened(headkv, 0.25).recipe.cache == [{"technique": "headkv", "capacity": 256}]


def test_every_technique_without_training_is_tried_with_caches_and_a_narrow_output_matrix() -> None:
    groups = [group for group in grouped(space(3774)) if group[0].recipe.weights]
    for table in MADE:
        own = [group for group in groups if group[0].recipe.weights[0] == table]
        assert own and all({one.compresses_cache for one in group} == {True, False} for group in own)
        narrow = [group for group in own if len(group[0].recipe.weights) == 2]
        assert len(narrow) == (0 if table["technique"] == "llm-int8" or table == {"technique": "zeroquant"} else 1)
        assert table["technique"] in COSTS


def test_making_weights_costs_what_its_techniques_cost() -> None:
    assert making([{"technique": "rtn"}]) == 1.0
    assert making([{"technique": "gptq"}, {"technique": "rtn"}]) == COSTS["gptq"] + 1.0
    assert is_slow([{"technique": "rtn"}, {"technique": "gptq"}]) == (COSTS["gptq"] > SLOW)
    assert not is_slow([{"technique": "rtn"}])
