"""kvpress, set alike, gives the answers that Thrifty gives: an outside check of KVzip and StreamingLLM.

Needs `make kvpress`; without that environment it is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.cache_table.beside import Beside
from benchmarks.cache_table.export import exported
from benchmarks.cache_table.own import Own
from benchmarks.cache_table.questions import Questions, questions
from benchmarks.cache_table.rows import kvpress_rows, matched_rows, thrifty_rows

from thrifty.models.loading import load

PYTHON = Path(os.environ.get("THRIFTY_KVPRESS", ".venv-kvpress/bin/python"))
NAME, LENGTH, ITEMS = "recall-2m", 512, 6
SHARES = (0.5, 0.25)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"{PYTHON} is missing: make kvpress, or set THRIFTY_KVPRESS"),
]

Sides = tuple[Own, Beside, Questions]


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    model = load(NAME)
    asked = questions(model.tokenizer, ["recall-many", "kl:scored=64"], LENGTH, ITEMS, 0, 0)
    own = Own(model, asked, 1)
    folder = exported(NAME, tmp_path_factory.mktemp("exported") / "model")
    beside = Beside(PYTHON, folder, model, asked, 1)
    yield own, beside, asked
    beside.close()
    own.close()


@pytest.mark.parametrize("technique", ["kvzip", "streaming"])
def test_the_same_method_gives_the_same_figures(sides: Sides, technique: str) -> None:
    own, beside, _ = sides
    ours = matched_rows([technique], SHARES)
    theirs = [row for row in kvpress_rows([technique], SHARES, LENGTH) if row.setting == "set alike"]
    assert len(ours) == len(theirs) == len(SHARES)
    for mine, press in zip(ours, theirs, strict=True):
        found, expected = (side.measure(row, "kl:scored=64") for side, row in ((own, mine), (beside, press)))
        assert found["kl"] == pytest.approx(expected["kl"], abs=0.002, rel=0.15)
        assert found["top1"] == pytest.approx(expected["top1"], abs=0.04)
        scores = [side.measure(row, "recall-many")["score"] for side, row in ((own, mine), (beside, press))]
        assert abs(scores[0] - scores[1]) <= 1 / ITEMS + 1e-9


def test_the_uncompressed_models_agree(sides: Sides) -> None:
    own, beside, _ = sides
    mine, press = thrifty_rows([], ())[0], kvpress_rows([], ())[0]
    assert [side.measure(row, "recall-many")["score"] for side, row in ((own, mine), (beside, press))] == [1.0, 1.0]


def test_layers_of_unequal_lengths_are_asked_token_by_token(sides: Sides) -> None:
    """A pyramid of the press: transformers makes one mask for a block of queries, of the first layer's length."""
    _, beside, _ = sides
    rows = [row for row in kvpress_rows(["pyramidkv"], (0.5,), LENGTH) if row.setting == "set alike"]
    assert len(rows) == 1 and not rows[0].note
    figures = beside.measure(rows[0], "kl:scored=64")
    assert 0 < figures["kl"] < 1 and figures["top1"] > 0.5
    assert 0 <= beside.measure(rows[0], "recall-many")["score"] <= 1
