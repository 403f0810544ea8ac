"""Formats of weights from the registry, and what papers found judged by a grid's intervals."""

from __future__ import annotations

import pytest
from tests.small_study import RTN, Small, Told, work_of

from thrifty import registry
from thrifty.evaluation.recovery import Interval
from thrifty.evaluation.studies.harness.figures import Figures
from thrifty.evaluation.studies.harness.findings import ABSENT, FAILS, HOLDS, OPEN, Bound, keeps, loses, repair_fails
from thrifty.evaluation.studies.harness.grid import Grid, GridError, grid
from thrifty.evaluation.studies.harness.methods import formats, widths
from thrifty.evaluation.studies.harness.state import StudyState
from thrifty.evaluation.studies.harness.study import Format
from thrifty.evaluation.tasks.task import Record
from thrifty.recipe import Recipe

LORA = (*RTN, {"technique": "lora-ft", "steps": 5})
REPAIRED = (Format("bf16"), Format("rtn-8", RTN), Format("rtn-8+lora", LORA))


def test_methods_have_their_widths_and_groups() -> None:
    made = formats(["rtn", "squeezellm"], [3, 4])
    assert [form.name for form in made] == ["bf16", "rtn-3", "rtn-4", "squeezellm-3", "squeezellm-4"]
    assert made[1].tables == ({"technique": "rtn", "bits": 3, "group": 128},)
    assert made[3].tables == ({"technique": "squeezellm", "bits": 3},)
    assert [form.name for form in formats(["llm-int8"], [3])] == ["bf16", "llm-int8"]


def test_a_repair_is_one_more_format_behind_each() -> None:
    made = formats(["rtn"], [4], repair=30)
    assert [form.name for form in made] == ["bf16", "rtn-4", "rtn-4+lora"]
    assert made[2].tables[1] == {"technique": "lora-ft", "steps": 30}


def test_all_is_every_technique_with_widths_and_each_is_a_recipe() -> None:
    made = formats(["all"])
    wanted = {name for name in registry.names("weights") if widths(name)}
    assert {form.tables[0]["technique"] for form in made[1:]} == wanted >= {"rtn", "gptq", "awq", "hqq", "squeezellm"}
    for form in made:
        Recipe(weights=list(form.tables)).techniques("weights")


def test_what_is_unknown_is_refused_with_the_nearest() -> None:
    with pytest.raises(GridError, match="no weight technique 'gtpq'. Did you mean 'gptq'?"):
        formats(["gtpq"])
    with pytest.raises(GridError, match="'squeezellm' has 3, 4 bits and none of those"):
        formats(["squeezellm"], [8])


@pytest.mark.parametrize(
    ("low", "high", "least", "most"),
    [(0.96, 0.99, HOLDS, FAILS), (0.90, 0.94, FAILS, HOLDS), (0.90, 0.99, OPEN, OPEN)],
)
def test_a_verdict_takes_the_whole_interval_on_one_side(low: float, high: float, least: str, most: str) -> None:
    kept = Interval((low + high) / 2, low, high)
    assert Bound(0.95, at_least=True).word(kept) == least and Bound(0.95, at_least=False).word(kept) == most


def answered(cells: Grid, scores: dict[str, float]) -> Figures:
    """A grid whose cells score so much at each of many items."""
    work, state = work_of(Told(), 400), StudyState(None, {})
    for cell in cells.cells:
        for item in work["told"].items:
            state.add_record(cell.key, Record("told", item.identity, scores[cell.weights.name], "", 0.0))
    return Figures(cells, work, state)


@pytest.mark.parametrize(("after", "word"), [(0.5, HOLDS), (0.8, OPEN), (1.0, FAILS)])
def test_a_repair_is_held_against_the_same_cell_without_it(after: float, word: str) -> None:
    cells = grid(Small(), caches=[], methods=REPAIRED)
    cells = Grid(tuple(cells.scored))
    figures = answered(cells, {"bf16": 1.0, "rtn-8": 0.8, "rtn-8+lora": after})
    here, verdict = repair_fails(cells, figures)
    assert verdict == word and here.startswith(f"rtn-8+lora {100 * (after - 0.8):+.1f}")


def test_shares_are_of_the_uncompressed_score_and_of_unrepaired_cells() -> None:
    cells = Grid(tuple(grid(Small(), caches=[], methods=REPAIRED).scored))
    figures = answered(cells, {"bf16": 0.5, "rtn-8": 0.3, "rtn-8+lora": 0.5})
    here, verdict = keeps(8, 0.97)(cells, figures)
    assert here.startswith("rtn-8 keeps 60.0 %") and "lora" not in here and verdict == FAILS
    assert loses(8, 0.9)(cells, figures)[1] == HOLDS
    assert keeps(3, 0.97)(cells, figures)[1] == ABSENT and keeps(8, 0.97, ("gptq",))(cells, figures)[1] == ABSENT
