"""`thrifty eval` on SmolLM2-135M: what it can do uncompressed, and that a score tells good recipes from bad ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from thrifty.engine.engine import Engine
from thrifty.evaluation import tasks
from thrifty.evaluation.comparison import Comparison
from thrifty.evaluation.forcing import Tables
from thrifty.evaluation.records import RecordFile
from thrifty.evaluation.scoring import Summary
from thrifty.models import load

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[Engine]:
    engine = Engine(load(smollm2), prefix_tree=False)
    yield engine
    engine.close()


def compared(engine: Engine, names: list[str], count: int, cache: Tables) -> list[Summary]:
    chosen = [tasks.parse(name, length=320) for name in names]
    comparison = Comparison(chosen, count, 0, engine, engine, cache)
    records = RecordFile(None, {})
    for _ in comparison.run(records):
        pass
    return comparison.summaries(records)


def test_it_recalls_and_chooses_and_four_bits_of_cache_keep_it(engine: Engine) -> None:
    recall, choice = compared(engine, ["recall", "choice"], 6, [{"technique": "kivi", "bits": 4, "residual": 64}])
    assert recall.baseline.value >= 0.8 and choice.baseline.value >= 0.6
    assert recall.recovery is not None and recall.recovery.value >= 0.8
    assert choice.recovery is not None and choice.recovery.value >= 0.8


def test_a_window_that_drops_the_context_forgets_what_is_asked_later(engine: Engine) -> None:
    (recall,) = compared(engine, ["recall"], 6, [{"technique": "streaming", "window": 64}])
    assert recall.recovery is not None and recall.recovery.value <= 0.5


def test_eviction_keeps_the_question_it_has_seen_better_than_one_it_has_not(engine: Engine) -> None:
    cache = [{"technique": "snapkv", "capacity": 96, "window": 16}]
    agnostic, aware = compared(engine, ["recall", "recall:mode=aware"], 6, cache)
    assert agnostic.baseline.value >= 0.8 and aware.baseline.value >= 0.8
    assert agnostic.score is not None and aware.score is not None
    assert aware.score.value > agnostic.score.value
