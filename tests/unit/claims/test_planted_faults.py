"""Faults that are planted under a technique's name turn its verdict: eviction at random, and a cache that is full."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from thrifty import claims
from thrifty.api import open_model
from thrifty.cache.edits import Edits
from thrifty.cache.policies.snapkv import Snapkv
from thrifty.claims.harness.budget import SHORT
from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import Bar, kept
from thrifty.claims.harness.records import ClaimRow
from thrifty.claims.harness.running import Reproduction

pytestmark = pytest.mark.slow
KEEP, LENGTH, ITEMS = 0.25, 512, 30
TABLE: dict[str, Any] = {"technique": "snapkv", "keep": KEEP, "window": 16, "group": "max"}


class RecallClaim(Claim):
    """Recall with a quarter kept, the question last: what the model can do and the technique keeps."""

    paper, source, rule, minutes = "1 ×", "arXiv:1", "recall of the full cache's ≥ 40 %", 0.1
    models = ("recall-2m",)

    def measure(self, context: Context) -> Measurement:
        recall = partial(context.recall, length=LENGTH)
        full, ours = recall([]), recall([TABLE])
        tested = controlled(recall, full, ours, keep=KEEP, length=LENGTH, whole=[TABLE | {"keep": 1.0}])
        return Measurement(
            headline=kept("recall", ours, full, Bar(0.4)),
            gates=(tested.gate, context.promise([TABLE], KEEP, length=LENGTH)),
            controls=tested.controls,
        )


@pytest.fixture(scope="module")
def model() -> Any:
    return open_model("recall-2m")


@pytest.fixture
def context(model: Any) -> Iterator[Context]:
    with Context(model, "recall-2m", budget=dataclasses.replace(SHORT, items=ITEMS)) as made:
        yield made


@pytest.fixture(autouse=True)
def claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "load", lambda name: RecallClaim())


def row(context: Context, *seeds: int) -> tuple[ClaimRow | None, dict[str, str]]:
    run = Reproduction(lambda name: context, ["snapkv"], seeds=seeds or (0,))
    return next(iter(run.rows()), None), run.failed


def test_without_a_fault_it_holds_with_every_seed(context: Context) -> None:
    made, failed = row(context, 0, 1)
    assert made is not None and not failed
    assert made.verdict == "holds", made.measurement
    assert made.run is not None and set(made.run.verdicts.values()) == {"holds"}


def test_random_eviction_under_its_name_does_not_hold(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(5)
    monkeypatch.setattr(Snapkv, "score", lambda self, kv, head, stats: chance.random(kv.count(head), dtype=np.float32))
    made, _ = row(context)
    assert made is not None and made.verdict == "does not hold here", made.measurement


def test_a_cache_that_is_silently_full_leaves_no_verdict(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Snapkv, "after_prefill", lambda self, layer, kv, stats: Edits())
    made, failed = row(context)
    assert made is None and "was compressed" in failed["snapkv on recall-2m"]


def test_a_cache_that_is_almost_full_does_not_hold_for_its_bytes(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Snapkv.slots
    monkeypatch.setattr(Snapkv, "slots", lambda self, count: max(whole(self, count), count - 8))
    made, _ = row(context)
    assert made is not None and made.measurement is not None
    assert made.verdict == "does not hold here"
    assert made.measurement.headline.estimate is not None and made.measurement.headline.estimate.value > 0.95
    assert [gate.verdict().value for gate in made.measurement.gates if gate.verdict()][-1] == "does not hold here"
