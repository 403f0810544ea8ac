"""The benchmark of masked diffusion beside its twin: its rows, its timings, its prefix cache."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from benchmarks import diffusion
from benchmarks.diffusion import WAYS, opened, prefix_cache, rate, row, table
from tests.tiny import tiny_model

from thrifty.evaluation.letters import Answered, answers, judged
from thrifty.models.loading import load


def test_a_row_counts_what_came() -> None:
    made = [Answered(True, 6, 3), Answered(False, 4, 2), Answered(True, 5, 2)]
    found = row("a", made)
    assert found["right"] == pytest.approx(2 / 3) and found["tokens_a_pass"] == pytest.approx(15 / 7)
    assert found["low"] <= found["right"] <= found["high"] and (found["tokens"], found["passes"]) == (15, 7)


def test_the_twin_makes_one_token_a_pass_and_masks_more() -> None:
    items = judged(6, "benchmark")
    figures = {}
    for name, model in (("twin", "letters-twin"), ("dimple, p > 0.5", "letters-diffusion")):
        engine = opened(load(model), 1)
        try:
            figures[name] = row(name, answers(engine, items, WAYS.get(name)))
            assert rate(engine, items, WAYS.get(name), 4)() > 0
        finally:
            engine.close()
    assert figures["twin"]["tokens_a_pass"] == 1.0
    assert figures["dimple, p > 0.5"]["tokens_a_pass"] > 1.0


def test_keys_that_are_kept_save_time() -> None:
    given = argparse.Namespace(threads=1, prompt=600, rounds=2, shape="tiny")
    found = prefix_cache(tiny_model(packed=True), given)
    assert found["times"] > 1.2 and found["prompt"] == 600


def test_every_way_can_be_built_and_the_table_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    from thrifty import registry

    for way in WAYS.values():
        assert registry.build("decoding", way[0]).fills_masks
    made: dict[str, Any] = {"quality": [row("twin", [Answered(True, 2, 2), Answered(False, 3, 3)])]}
    made["rates"] = [{"way": "twin", "batch": 8, "tokens_a_second": 10.0, "void": "others took 5% of the machine"}]
    made["prefix_cache"] = {"model": "m", "prompt": 9, "kept_s": 1.0, "whole_s": 3.0, "times": 3.0, "void": ""}
    table(made)
    shown = capsys.readouterr().out
    assert "50.0%" in shown and "VOID: others" in shown and "3.00 x" in shown
    assert set(diffusion.TIMED) - {"twin"} <= set(WAYS)
