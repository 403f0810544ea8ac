"""Runs of several claims: bounded, interrupted, failing, with controls that contradict and seeds that disagree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.tiny import tiny_model

from thrifty import claims
from thrifty.claims.harness import records, running
from thrifty.claims.harness.budget import SHORT
from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control, ControlError
from thrifty.claims.harness.parts import Bar, Verdict, exactly
from thrifty.claims.harness.running import Reproduction, agreed
from thrifty.errors import PromptError, StorageError
from thrifty.evaluation.recovery import Interval

NAMES = ["ada-kv", "h2o", "kivi"]
Action = Callable[[Context], Measurement]


def value(number: float, *controls: Control) -> Measurement:
    return Measurement(exactly("share", number, Bar(0.9)), controls=controls, setting="nothing was run")


class Fake(Claim):
    paper, source, rule, minutes = "1 ×", "arXiv:1", "always", 1.0
    models = ("tiny", "large")

    def __init__(self, action: Action) -> None:
        self.action = action

    def measure(self, context: Context) -> Measurement:
        return self.action(context)


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    with Context(tiny_model(packed=True), "tiny", threads=1) as made:
        yield made


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(**actions: Action) -> None:
        def holds(context: Context) -> Measurement:
            return value(1.0)

        monkeypatch.setattr(claims, "load", lambda name: Fake(actions.get(name.replace("-", "_"), holds)))

    return use


def test_every_row_is_on_disk_when_it_is_given(context: Context, tmp_path: Path, fakes: Callable[..., None]) -> None:
    fakes()
    page = tmp_path / "claims.md"
    for count, row in enumerate(Reproduction(lambda name: context, NAMES, page).rows(), start=1):
        held = records.read(records.record_of(page))
        assert len(held) == count and held[row.key] == row
        assert page.read_text().count("| **holds** |") == count
    assert row.run is not None and row.run.half == "judged" and row.run.code and row.run.commit
    assert row.model == "tiny" and row.run.threads == 1 and row.run.verdicts == {"0": "holds"}


def test_an_interrupted_run_keeps_what_was_finished(
    context: Context, tmp_path: Path, fakes: Callable[..., None]
) -> None:
    def interrupted(context: Context) -> Measurement:
        raise KeyboardInterrupt

    fakes(h2o=interrupted)
    page = tmp_path / "claims.md"
    with pytest.raises(KeyboardInterrupt):
        list(Reproduction(lambda name: context, NAMES, page).rows())
    assert set(records.read(records.record_of(page))) == {("ada-kv", "tiny")}


def test_rows_that_another_run_wrote_meanwhile_stay(
    context: Context, tmp_path: Path, fakes: Callable[..., None]
) -> None:
    page = tmp_path / "claims.md"

    def another_run(context: Context) -> Measurement:
        fakes()
        list(Reproduction(lambda name: context, ["kivi"], page).rows())
        return value(1.0)

    fakes(h2o=another_run)
    list(Reproduction(lambda name: context, ["h2o"], page).rows())
    assert set(records.read(records.record_of(page))) == {("h2o", "tiny"), ("kivi", "tiny")}


def test_a_claim_that_cannot_be_measured_loses_its_old_verdict_and_does_not_stop_the_others(
    context: Context, tmp_path: Path, fakes: Callable[..., None]
) -> None:
    def refuse(context: Context) -> Measurement:
        raise PromptError("this context holds 4096")

    page = tmp_path / "claims.md"
    fakes()
    list(Reproduction(lambda name: context, NAMES, page).rows())
    fakes(ada_kv=refuse)
    run = Reproduction(lambda name: context, NAMES, page)
    assert [row.technique for row in run.rows()] == ["h2o", "kivi"]
    assert run.failed == {"ada-kv on tiny": "this context holds 4096"}
    row = records.read(records.record_of(page))["ada-kv", "tiny"]
    assert row.verdict == "stale" and row.measurement is None and row.stale.endswith(": this context holds 4096")
    assert "**stale**" in page.read_text()


def test_a_fault_that_nobody_foresaw_ends_the_run_and_leaves_no_old_verdict(
    context: Context, tmp_path: Path, fakes: Callable[..., None]
) -> None:
    def broken(context: Context) -> Measurement:
        raise IndexError("list index out of range")

    page = tmp_path / "claims.md"
    fakes()
    list(Reproduction(lambda name: context, NAMES, page).rows())
    fakes(h2o=broken)
    with pytest.raises(IndexError):
        list(Reproduction(lambda name: context, NAMES, page).rows())
    rows = records.read(records.record_of(page))
    assert rows["h2o", "tiny"].stale.endswith(": IndexError: list index out of range")
    assert rows["ada-kv", "tiny"].verdict == rows["kivi", "tiny"].verdict == "holds"


def test_a_control_that_behaves_otherwise_leaves_no_verdict(
    context: Context, tmp_path: Path, fakes: Callable[..., None]
) -> None:
    wins = Control("random eviction", "lose", Interval(0.2, 0.1, 0.3))
    fakes(kivi=lambda context: value(1.0, wins))
    page = tmp_path / "claims.md"
    run = Reproduction(lambda name: context, ["kivi"], page)
    assert list(run.rows()) == []
    assert "random eviction (must lose) +0.200" in run.failed["kivi on tiny"]
    assert records.read(records.record_of(page))["kivi", "tiny"].verdict == "stale"


def test_several_seeds_are_run_and_told(context: Context, fakes: Callable[..., None]) -> None:
    fakes(kivi=lambda context: value(1.0))
    (row,) = Reproduction(lambda name: context, ["kivi"], seeds=(3, 4)).rows()
    assert row.run is not None and row.run.seeds == (3, 4)
    assert row.verdict == "holds" and row.run.verdicts == {"3": "holds", "4": "holds"}


def test_opposite_verdicts_of_two_seeds_are_an_error(context: Context, fakes: Callable[..., None]) -> None:
    fakes(kivi=lambda context: value(1.0 if context.seed else 0.5))
    run = Reproduction(lambda name: context, ["kivi"], seeds=(0, 1))
    assert list(run.rows()) == []
    assert "seeds give opposite verdicts (seed 0: does not hold here, seed 1: holds)" in run.failed["kivi on tiny"]


def test_what_one_seed_leaves_open_is_open() -> None:
    assert agreed({0: Verdict.HOLDS, 1: Verdict.INCONCLUSIVE}) is Verdict.INCONCLUSIVE
    assert agreed({0: Verdict.FAILS, 1: Verdict.FAILS}) is Verdict.FAILS
    with pytest.raises(ControlError):
        agreed({0: Verdict.HOLDS, 1: Verdict.INCONCLUSIVE, 2: Verdict.FAILS})


def test_no_claim_begins_that_would_end_too_late(
    context: Context, fakes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def takes_two_minutes(context: Context) -> Measurement:
        now[0] += 120
        return value(1.0)

    fakes(ada_kv=takes_two_minutes)
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])
    run = Reproduction(lambda name: context, NAMES, budget=dataclasses.replace(SHORT, minutes=3.5))
    assert [row.technique for row in run.rows()] == ["ada-kv"]
    assert run.left_out == ["h2o on tiny", "kivi on tiny"], "they take twice what was planned, as the first did"


def test_a_claim_is_measured_with_its_own_models_unless_others_are_named(
    context: Context, fakes: Callable[..., None]
) -> None:
    fakes()
    asked: list[str] = []

    def contexts(name: str) -> Context:
        asked.append(name)
        return context

    list(Reproduction(contexts, ["kivi"]).rows())
    list(Reproduction(contexts, ["kivi"], budget=dataclasses.replace(SHORT, models=2)).rows())
    list(Reproduction(contexts, ["kivi"], models=["other"]).rows())
    assert asked == ["tiny", "tiny", "large", "other"]


def test_a_full_disk_or_another_run_says_nothing_of_a_claim(
    context: Context, tmp_path: Path, fakes: Callable[..., None]
) -> None:
    fakes()
    page = tmp_path / "claims.md"
    assert len(list(Reproduction(lambda name: context, NAMES[:1], page).rows())) == 1
    before = page.read_text()

    def in_use(context: Context) -> Measurement:
        raise StorageError("another run is using the results")

    fakes(ada_kv=in_use)
    with pytest.raises(StorageError, match="another run"):
        list(Reproduction(lambda name: context, NAMES, page).rows())
    assert page.read_text() == before, "the row that was there is not stale"
