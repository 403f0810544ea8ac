"""Recovery over items, and a recipe beside the baseline: paired, resumable, honest about what cannot be said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tests.tiny import tiny_model

from thrifty.engine.engine import Engine
from thrifty.errors import PromptError
from thrifty.evaluation import scoring, tasks
from thrifty.evaluation.comparison import BASELINE, RECIPE, Comparison
from thrifty.evaluation.forcing import MeasurementError, Tables
from thrifty.evaluation.protocol import Protocol
from thrifty.evaluation.records import RecordFile
from thrifty.evaluation.recovery import mean_interval
from thrifty.evaluation.tasks.task import Item, Record, Task, TaskTurn

KIVI = [{"technique": "kivi", "bits": 2, "residual": 0}]


def records(scores: list[float], start: int = 0) -> list[Record]:
    return [Record("t", str(start + number), score, "", 0.1) for number, score in enumerate(scores)]


@dataclass(frozen=True, kw_only=True)
class Counting(Task):
    """Scores what it is told and writes down what was run."""

    name: ClassVar[str] = "counting"
    metric: ClassVar[str] = "told"
    writes: ClassVar[bool] = True

    ran: list[tuple[str, bool]] = field(default_factory=list, compare=False)
    fails_at: int = -1

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        return [Item(f"{seed}-{number}", (1, 2), (TaskTurn((3,)),), 10) for number in range(count)]

    def run(self, engine: Engine, item: Item, cache: Tables | None) -> Record:
        if len(self.ran) == self.fails_at:
            raise KeyboardInterrupt
        self.ran.append((item.identity, bool(cache)))
        text = "the quick brown fox" if not cache or item.identity.endswith("0") else "the quick red fox"
        return Record("counting", item.identity, 0.5 if cache else 1.0, text, 0.1, details={"nll": 2.0})

    @property
    def label(self) -> str:
        return self.name


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(tiny_model(), prefix_tree=False, threads=1, context=1000)
    yield engine
    engine.close()


def compared(engine: Engine, task: Task, count: int = 4, **options: Any) -> Comparison:
    return Comparison([task], count, 0, engine, options.get("recipe", engine), KIVI)


def test_recovery_is_the_ratio_of_the_means_with_items_drawn_in_pairs() -> None:
    generator = np.random.default_rng(2)
    baseline = (generator.random(60) < 0.8).astype(np.float64)
    own = baseline * (generator.random(60) < 0.75)
    found = scoring.recovery(records(own.tolist()), records(baseline.tolist()))
    assert found is not None
    assert found.value == pytest.approx(float(own.sum() / baseline.sum()))
    draws = generator.integers(0, 60, (20_000, 60))
    ratios = np.quantile(own[draws].mean(1) / baseline[draws].mean(1), (0.025, 0.975))
    assert [found.low, found.high] == pytest.approx(ratios.tolist(), abs=0.03)


def test_items_are_drawn_one_by_one() -> None:
    values = [0.0] * 16 + [1.0] * 16
    items, tokens = mean_interval(values, block=1), mean_interval(values)
    assert items.high - items.low < 0.6 * (tokens.high - tokens.low)


def test_items_are_paired_by_identity_whatever_their_order() -> None:
    own, baseline = records([1.0, 0.0, 1.0]), records([1.0, 1.0, 1.0, 1.0])
    found = scoring.recovery(own[::-1], baseline)
    assert found is not None and found.value == pytest.approx(2 / 3)
    with pytest.raises(MeasurementError, match="3 records and 2 of the baseline share no item"):
        scoring.recovery(own, records([1.0, 1.0], start=50))


def test_few_items_have_wide_intervals_and_one_says_nothing() -> None:
    equal = scoring.recovery(records([1.0] * 10), records([1.0] * 10))
    assert equal is not None and equal.value == 1.0 and equal.low < 0.85, "ten equal answers prove no equality"
    alone = scoring.recovery(records([1.0]), records([0.8]))
    assert alone is not None and (alone.low, alone.high) == pytest.approx((0.0, 1.25))


def test_what_the_baseline_cannot_do_has_no_recovery_and_says_so() -> None:
    assert scoring.recovery(records([1.0, 1.0]), records([0.0, 0.0])) is None
    row = scoring.summarize("t", "m", records([0.0, 0.0]), records([0.0, 1.0])).as_dict()
    assert row["recovery"] is None and row["undefined"] == "undefined: the baseline scores 0"
    alone = scoring.summarize("t", "m", records([0.0, 0.0])).as_dict()
    assert alone["score"] is None and alone["undefined"] is None


def test_score_runs_every_item(engine: Engine) -> None:
    task = tasks.load("recall", length=300)
    items = task.items(engine.model.tokenizer, 2, 0)
    found = list(scoring.score(engine, task, items, KIVI))
    assert [one.item for one in found] == [item.identity for item in items]


def test_a_length_beyond_the_context_is_refused_with_what_would_fit(engine: Engine) -> None:
    task = tasks.load("recall", length=999)
    with pytest.raises(
        PromptError, match=r"takes \d+ tokens, .* context holds 1000: use at most --length \d+"
    ) as found:
        Comparison([task], 12, 0, engine, engine, KIVI)
    fitting = tasks.load("recall", length=int(str(found.value).rpartition(" ")[2]))
    Comparison([fitting], 12, 0, engine, engine, KIVI)


def test_an_interrupted_comparison_goes_on_where_it_was(engine: Engine, tmp_path: Path) -> None:
    path, first, second = tmp_path / "r.jsonl", Counting(fails_at=5), Counting()
    with RecordFile(path, {}) as file:
        comparison = compared(engine, first)
        with pytest.raises(KeyboardInterrupt):
            list(comparison.run(file))
        (row,) = comparison.summaries(file)
        assert row.items == 1 and row.recovery is not None and row.recovery.value == 0.5
        assert row.beside == {"nll": 2.0}
    with RecordFile(path, {}) as file:
        comparison = compared(engine, second)
        assert len(list(comparison.run(file))) == comparison.total == 4
        assert second.ran == [(f"0-{number}", True) for number in range(1, 4)], "baselines were there"
        assert comparison.summaries(file)[0].items == 4


def test_a_recipe_that_was_missed_is_run_alone_with_its_baseline_kept(engine: Engine, tmp_path: Path) -> None:
    task = Counting()
    with RecordFile(tmp_path / "r.jsonl", {}) as file:
        for item in task.items(None, 2, 0):
            file.add(BASELINE, task.run(engine, item, []))
        list(compared(engine, task, 2).run(file))
        assert len(file.of(BASELINE, "counting")) == len(file.of(RECIPE, "counting")) == 2


def test_without_a_recipe_only_the_baseline_runs(engine: Engine) -> None:
    task = Counting()
    with RecordFile(None, {}) as file:
        comparison = compared(engine, task, recipe=None)
        list(comparison.run(file))
        (row,) = comparison.summaries(file)
    assert task.ran == [(f"0-{number}", False) for number in range(4)]
    assert row.score is None and row.baseline.value == 1.0


def test_the_protocol_tells_how_far_the_text_departs(engine: Engine) -> None:
    task = Counting()
    with RecordFile(None, {}) as file:
        protocol = Protocol([task], 2, 0, engine)
        list(protocol.run_baseline(file))
        list(protocol.run(file, "cache: kivi 2", engine, KIVI))
        list(protocol.run(file, "cache: kivi 2", engine, KIVI))
        (row,) = protocol.rows(file, ["cache: kivi 2", "never run"])
    assert len(task.ran) == 4, "nothing is run twice"
    assert (row.format, row.summary.items, row.summary.recovery and row.summary.recovery.value) == (
        "cache: kivi 2",
        2,
        0.5,
    )
    assert row.rouge_1 == row.rouge_l == pytest.approx((1 + 0.75) / 2)
    assert (row.same_tokens, row.tokens, row.identical) == ((4 + 2) / 2, 4, 0.5)
    assert row.as_dict()["task"] == "counting" and row.as_dict()["rouge_l"] == row.rouge_l


def test_the_protocols_intervals_are_of_whole_contexts(engine: Engine) -> None:
    """Twelve items of two contexts, one lost and one kept: as two draws they may all be lost, as twelve hardly."""

    @dataclass(frozen=True, kw_only=True)
    class Sharing(Counting):
        def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
            items = super().items(tokenizer, count, seed)
            return [replace(item, cluster=place % 2) for place, item in enumerate(items)]

        def run(self, engine: Engine, item: Item, cache: Tables | None) -> Record:
            return replace(super().run(engine, item, cache), score=float(not cache or item.cluster))

    with RecordFile(None, {}) as file:
        protocol = Protocol([Sharing()], 12, 0, engine)
        list(protocol.run_baseline(file))
        list(protocol.run(file, "cache: kivi 2", engine, KIVI))
        (row,) = protocol.rows(file, ["cache: kivi 2"])
    assert row.summary.recovery is not None
    assert (row.summary.recovery.low, row.summary.recovery.value) == (0.0, 0.5) and row.summary.recovery.high >= 1.0
