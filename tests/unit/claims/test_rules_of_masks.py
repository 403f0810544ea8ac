"""Verdicts about models that fill in masks: made-up answers and passes turn them by each claim's rule."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.unit.claims.made_up import MadeUp

from thrifty.claims import daedal, dimple, lavida
from thrifty.claims.harness.claim import Measurement
from thrifty.claims.harness.letters import Letters
from thrifty.claims.harness.parts import Verdict
from thrifty.claims.harness.statistics import Scores

HOLDS, FAILS, OPEN, UNTESTABLE = Verdict.HOLDS, Verdict.FAILS, Verdict.INCONCLUSIVE, Verdict.UNTESTABLE
ITEMS, TOKENS = 400, 9.0
NAMES = tuple(f"question {place}" for place in range(ITEMS))
CLAIMS = {"daedal": daedal.DaedalClaim, "dimple": dimple.DimpleClaim, "lavida": lavida.LavidaClaim}


def made_up(right: float, passes: float) -> Letters:
    """The same questions are easy for all."""
    easy = np.random.default_rng(0).permutation(ITEMS) < round(right * ITEMS)
    tokens = Scores((TOKENS,) * ITEMS, NAMES, bounded=False)
    counts = tuple(passes * (1 + 0.01 * (place % 3 - 1)) for place in range(ITEMS))
    return Letters(Scores(tuple(easy.astype(float)), NAMES), tokens, Scores(counts, NAMES, higher=False, bounded=False))


def level(ours: tuple[float, float], table: dict[str, Any] | None) -> tuple[float, float]:
    """(right, passes) of a way to decode: `ours` is what the claim is about."""
    if table is None:
        return 0.85, 9.0  # the twin
    if table["technique"] == "dimple":
        if "threshold" not in table:
            return ours
        return {"random": 0.3}.get(table["rule"], 0.7), 11.0
    if table["technique"] == "lavida":
        return {1.0: (0.8, 13.0), 0.5: ours}.get(table["ratio"], (0.2, 2.0))
    if table.get("sure") == 0.0:
        return 0.2, 3.0
    return (0.8 if table["initial"] == 12 else 0.7, 9.0) if "length" in table else ours


def measured(
    name: str,
    ours: tuple[float, float],
    monkeypatch: pytest.MonkeyPatch,
    rate: float = 4.0,
    void: str = "",
    **model: Any,
) -> Measurement:
    context = MadeUp(rates=(1.0, rate), void=void)
    context.model.config.mask_id = model.get("mask_id", 3)  # type: ignore[misc]
    monkeypatch.setattr(context, "fresh", lambda *_, **__: SimpleNamespace(close=lambda: None))
    module = {"daedal": daedal, "dimple": dimple, "lavida": lavida}[name]

    def lettered(engine: object, items: object, decoding: Any = None) -> Letters:
        return made_up(*level(ours, None if decoding is None else decoding[0]))

    monkeypatch.setattr(module, "lettered", lettered)
    monkeypatch.setattr(module, "asked", lambda count, seed, tuning=False: list(NAMES))
    if name != "daedal":
        tokenizer = SimpleNamespace()
        stand_in = SimpleNamespace(require_tokenizer=lambda: tokenizer)
        monkeypatch.setattr(module, "load", lambda model: stand_in)
    if name == "lavida":
        monkeypatch.setattr(lavida, "held_out", lambda tokenizer, count: [1] * count)
        monkeypatch.setattr(lavida, "_masked", lambda model: model)
    measurement = CLAIMS[name]().measure(context)
    assert not any(control.contradicts for control in measurement.controls), measurement.controls
    return measurement


@pytest.mark.parametrize(("name", "ours", "verdict"), [
    ("dimple", (0.8, 2.8), HOLDS),
    ("dimple", (0.8, 4.5), FAILS),
    ("dimple", (0.8, 3.0), OPEN),
    ("dimple", (0.6, 2.0), FAILS),
    ("daedal", (0.8, 9.0), HOLDS),
    ("daedal", (0.6, 9.0), FAILS),
    ("daedal", (0.765, 9.0), OPEN),
    ("lavida", (0.8, 6.0), HOLDS),
    ("lavida", (0.5, 6.0), FAILS),
    ("lavida", (0.765, 6.0), OPEN),
])  # fmt: skip
def test_answers_and_passes_decide(
    name: str, ours: tuple[float, float], verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measured(name, ours, monkeypatch).verdict() is verdict


def test_time_decides_lavidas_headline(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured("lavida", (0.8, 6.0), monkeypatch, rate=2.0).verdict() is FAILS
    assert measured("lavida", (0.8, 6.0), monkeypatch, void="others took 9% of the machine").verdict() is OPEN


@pytest.mark.parametrize("name", CLAIMS)
def test_a_causal_model_tells_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(name, (0.8, 2.0), monkeypatch, mask_id=None).verdict() is UNTESTABLE


def test_the_best_fixed_length_is_chosen_on_other_items(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "other items chose 12" in measured("daedal", (0.8, 9.0), monkeypatch).setting


def test_a_setting_in_which_haste_loses_nothing_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """All places at once answer as well: the questions tell no way to decode from another."""
    monkeypatch.setattr("tests.unit.claims.test_rules_of_masks.level", lambda ours, table: (0.8, 2.0 if table else 9.0))
    for name in CLAIMS:
        assert measured(name, (0.8, 2.0), monkeypatch).verdict() is OPEN
