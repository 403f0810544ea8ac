"""`fit` on SmolLM2-135M: the budget of the demo is a real choice, and its winner serves within it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from thrifty.api import Thrifty
from thrifty.engine.engine import Engine
from thrifty.evaluation.text import held_out
from thrifty.frontier.candidates import BASE
from thrifty.frontier.fit import Fit
from thrifty.frontier.predict import predict
from thrifty.frontier.question import Question
from thrifty.frontier.space import space
from thrifty.models import Model, load

pytestmark = pytest.mark.model

BUDGET = 150_000_000
CONTEXT = 4096


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Model:
    return load(smollm2)


def test_the_uncompressed_model_does_not_fit_the_budget_of_the_demo(model: Model) -> None:
    engine = Engine(model, prefix_tree=False)
    need = predict(engine, BASE, CONTEXT)
    engine.close()
    assert 188e6 < need.steady < 195e6, "about 191 MB of weights and cache"
    assert need.peak > BUDGET


def test_the_winner_fits_is_close_to_the_baseline_and_serves_within_the_budget(model: Model, tmp_path: Path) -> None:
    quick = ("as shipped", "kivi(bits=2)", "snapkv(capacity=512) + kivi(bits=4)")
    chosen = [one for one in space(1024) if one.label in quick]
    assert len(chosen) == 3
    fit = Fit(Question(model, BUDGET, CONTEXT, prefix=1024, scored=48, candidates=chosen, items=4))
    list(fit.rows())
    rows = {row.candidate.label: row for row in fit.measured}
    assert not rows["as shipped"].fits
    assert fit.best is not None and fit.best.fits and fit.best.quality is not None
    assert fit.best.quality.top1.value > 0.7
    assert all(row.ledger_peak < row.need.peak for row in rows.values())
    path = tmp_path / "recipe.toml"
    fit.best.candidate.recipe.save(path)
    with Thrifty(model, recipe=path, memory=BUDGET, context=CONTEXT) as thrifty:
        tokens = held_out(model.tokenizer, 1500)
        result = thrifty.generate(tokens, max_tokens=8)
        assert len(result.token_ids) >= 1
        assert thrifty.engine.memory.ledger.peak <= BUDGET


PROGRAM = """
import sys
from thrifty.frontier.fit import Fit
from thrifty.frontier.question import Question
from thrifty.frontier.space import space
from thrifty.models import load
from thrifty.storage.process import peak_resident

labels = ("as shipped", "kivi(bits=4)", "rtn(bits=4, group=128, embedding_bits=4) + kivi(bits=4)")
chosen = [one for one in space(3774) if one.label in labels]
fit = Fit(Question(load(sys.argv[1]), 150_000_000, 4096, scored=8, candidates=chosen, tasks=()))
list(fit.rows())
assert {row.candidate.label for row in fit.measured if row.rung == 2} == set(labels)
print(peak_resident())
"""


@pytest.mark.slow
def test_a_search_holds_no_second_model_beside_the_first(smollm2: Path) -> None:
    """Its own process stays below 400 MB with room for what libraries add; two models side by side would not."""
    finished = subprocess.run([sys.executable, "-c", PROGRAM, str(smollm2)], capture_output=True, text=True, check=True)
    assert int(finished.stdout) < 350e6
