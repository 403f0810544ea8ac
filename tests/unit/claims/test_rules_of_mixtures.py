"""Verdicts of the claims about mixtures of experts, of made-up losses; and what plain rounding does beside them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.unit.claims.made_up import LOSS, MadeUp

from thrifty.claims import milo, puzzlemoe
from thrifty.claims.harness.claim import Measurement
from thrifty.claims.harness.mixtures import Predicted
from thrifty.claims.harness.parts import Verdict
from thrifty.claims.harness.statistics import Scores

CLAIMS = {"milo": milo.MiloClaim, "puzzlemoe": puzzlemoe.PuzzleMoeClaim}
CLUSTERS = tuple(f"passage {place // 64}" for place in range(1024))
EXPERTS = ["layers.0.mlp.experts.up.0", "layers.0.mlp.experts.up.1"]
ACCURACY = 0.5
Level = tuple[float, float, float]
"""Nats above the uncompressed model's, share of its accuracy, share of its bytes."""


def made_up(level: Level) -> Predicted:
    """Losses and first choices of 16 passages. All techniques find the same tokens easy."""
    above, share, size = level
    easy = np.random.default_rng(0).permutation(len(CLUSTERS))
    apart = np.random.default_rng(round(1000 * above)).normal(0, 0.002, len(CLUSTERS))
    loss = LOSS + above + apart - apart.mean()
    right = (easy < round(ACCURACY * share * len(CLUSTERS))).astype(float)
    losses = Scores(tuple(loss.tolist()), CLUSTERS, higher=False, bounded=False)
    return Predicted(losses, Scores(tuple(right.tolist()), CLUSTERS), round(10**6 * size), round(10**6 * size))


def measured(name: str, ours: Level, plain: Level, monkeypatch: pytest.MonkeyPatch) -> Measurement:
    """The claim's measurement where its technique and plain rounding at few bits come out as given."""
    skipped: list[Any] = []

    def predicted(context: Any, *tables: Any) -> Predicted:
        if not tables:
            return made_up((0.0, 1.0, 1.0))
        if len(tables) > 1 or {"similarity": 1.0}.items() <= tables[0].items():
            return made_up((1.0, 0.5, 0.3))  # what must lose
        if tables[0]["technique"] == name and 0 not in tables[0].values():
            return made_up(ours)
        skipped.append(tables[0].get("skip", []))
        return made_up(plain if tables[0]["technique"] != name else (0.2, 0.9, 0.3))

    module = {"milo": milo, "puzzlemoe": puzzlemoe}[name]
    monkeypatch.setattr(module, "predicted", predicted)
    context = MadeUp()
    context.model.config.experts = object()  # type: ignore[misc]
    context.model.linears = dict.fromkeys([*EXPERTS, "layers.0.attention.query"], SimpleNamespace())  # type: ignore[arg-type]
    measurement = CLAIMS[name]().measure(context)
    assert not set(EXPERTS).intersection(*skipped), "experts are what is rounded"
    return measurement


@pytest.mark.parametrize(("name", "ours", "verdict"), [
    ("milo", (0.05, 0.98, 0.3), Verdict.HOLDS),
    ("milo", (0.20, 0.98, 0.3), Verdict.FAILS),
    ("milo", (0.05, 0.98, 0.38), Verdict.FAILS),
    ("puzzlemoe", (0.01, 0.995, 0.5), Verdict.HOLDS),
    ("puzzlemoe", (0.04, 0.995, 0.5), Verdict.FAILS),
    ("puzzlemoe", (-math.log(72.6 / 74.1), 0.995, 0.5), Verdict.INCONCLUSIVE),
    ("puzzlemoe", (0.01, 0.995, 0.6), Verdict.FAILS),
])  # fmt: skip
def test_losses_accuracy_and_bytes_decide(
    name: str, ours: Level, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measured(name, ours, (0.01, 1.0, 0.28), monkeypatch).verdict() is verdict


@pytest.mark.parametrize("name", CLAIMS)
def test_plain_rounding_that_is_better_in_fewer_bytes_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The papers have no such rival: the verdict stays, and who reads it sees the other way."""
    measurement = measured(name, (0.015, 0.995, 0.3), (0.01, 1.0, 0.15), monkeypatch)
    assert measurement.verdict() is Verdict.HOLDS
    behind, more = ([part for part in measurement.parts if word in part.name] for word in ("4 bits", "bytes of"))
    losses = next(part.estimate for part in behind if part.name.startswith("loss below"))
    assert losses is not None and losses.high < 0
    assert any(part.estimate is not None and part.estimate.value == pytest.approx(2) for part in more)
