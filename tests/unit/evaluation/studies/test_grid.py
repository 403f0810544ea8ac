"""The grid of a study: its cells, the controls, and what is refused."""

from __future__ import annotations

import pytest
from tests.small_study import ABSENT, Small

from thrifty.errors import RecipeError
from thrifty.evaluation import studies
from thrifty.evaluation.studies.harness.grid import GridError, grid
from thrifty.recipe import Recipe


def test_every_format_of_weights_meets_every_cache_and_those_of_equal_weights_stand_together() -> None:
    cells = grid(Small())
    labels = [cell.label for cell in cells.scored]
    assert labels == ["plain × full", "plain × four", "eight × full", "eight × four"]
    assert cells.baseline.plain
    assert [cell.label for cell in cells.controls] == ["the baseline again", "two bits"]
    assert [len(group) for group in cells.groups()] == [4, 2]
    assert len({cell.key for cell in cells.cells}) == len(cells.cells), "a control has records of its own"


def test_a_control_that_cannot_be_run_is_told_with_the_reason() -> None:
    ((control, reason),) = grid(Small()).missing
    assert control is ABSENT and "no technique 'no-such-policy'" in reason


def test_a_part_of_the_grid_always_has_the_uncompressed_formats() -> None:
    cells = grid(Small(), weights=["eight"], caches=[])
    assert [cell.label for cell in cells.scored] == ["plain × full", "eight × full"]


def test_a_recipe_of_ones_own_is_one_more_cell_and_never_a_second_one_of_its_like() -> None:
    own = Recipe(cache=[{"technique": "kivi", "bits": 2}])
    assert grid(Small(), own=own).scored[-1].label == "plain × kivi(bits=2)"
    same = Recipe(name="mine", cache=[{"technique": "kivi", "bits": 4, "group": 32}])
    assert len(grid(Small(), own=same).scored) == 4, "options that are spelled out make no other recipe"
    with pytest.raises(RecipeError, match="leave it out"):
        grid(Small(), own=Recipe(decoding=[{"technique": "autoregressive"}]))


def test_an_unknown_format_gets_the_nearest() -> None:
    with pytest.raises(GridError, match="no cache format 'fuor'. Did you mean 'four'"):
        grid(Small(), caches=["fuor"])
    with pytest.raises(GridError, match="no weights format 'xyz'. Known: eight, plain"):
        grid(Small(), weights=["xyz"])


@pytest.mark.parametrize("name", studies.names())
def test_every_study_has_a_grid_whose_techniques_are_there(name: str) -> None:
    study = studies.load(name)
    cells = grid(study)
    assert cells.baseline.plain and len(cells.scored) == len(study.weights) * len(study.caches)
    assert study.title and study.papers and set(study.aside) < set(study.tasks)
    assert "the baseline again" in [cell.label for cell in cells.controls]
    told = [cell.label for cell in cells.controls] + [control.name for control, _ in cells.missing]
    assert "random eviction" in told


def test_an_unknown_study_gets_the_nearest() -> None:
    with pytest.raises(studies.StudyError, match="no study 'quantisation'. Did you mean 'quantization'"):
        studies.load("quantisation")
