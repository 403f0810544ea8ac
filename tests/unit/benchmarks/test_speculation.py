"""The benchmark of drafts: its sides are recipes, its bounds are arithmetic, and its page shows what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import speculation
from benchmarks.speculation import Side, between, bound_of, sides_of
from tests.tiny import tiny_model

from thrifty import registry
from thrifty.claims.harness.drafting import Answer
from thrifty.evaluation.tasks import TaskError
from thrifty.models.model import Model

COSTS = {1: 10.0, 2: 11.0, 5: 14.0, 9: 18.0, 16: 30.0}


def test_every_side_is_a_recipe() -> None:
    for tables in sides_of("layers:0-1").values():
        for table in tables:
            assert registry.build("decoding", table).name == table["technique"]


def test_a_bound_is_what_steps_and_acceptance_allow() -> None:
    side = Side([], answers=[Answer(list(range(31)), (5,) * 10, 1.0)])  # 30 tokens in 10 steps of 4 drafted each
    assert side.tokens_a_step == 3 and side.rows_a_step == 5 and side.acceptance == pytest.approx(20 / 30)
    expected = (1 - (2 / 3) ** 5) / (1 / 3)
    assert bound_of("speculative, 4", side, COSTS, 2.0) == pytest.approx(expected * 10 / (4 * 2 + 14))
    assert bound_of("prompt-lookup", side, COSTS, 2.0) == pytest.approx(3 * 10 / 14)
    assert bound_of("plain", side, COSTS, 2.0) is None
    assert bound_of("speculative, adaptive", side, COSTS, 100.0) == 1.0, "no draft is a draft, too"


def test_times_between_the_measured_rows() -> None:
    assert between(COSTS, 1) == 10 and between(COSTS, 7) == 16 and between(COSTS, 1.5) == 10.5
    assert between(COSTS, 32) == 60


@pytest.mark.long
def test_it_runs_and_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    model: Model = tiny_model(packed=True)
    monkeypatch.setattr(speculation, "open_engine", lambda name, **options: _engine(model, **options))
    monkeypatch.setattr(speculation, "LENGTH", 48)
    monkeypatch.setattr(speculation, "peers", lambda *arguments: [])

    def missing(kind: str, *more: Any) -> Any:
        raise TaskError("not here")

    usual = speculation.prompts_of
    monkeypatch.setattr(
        speculation, "prompts_of", lambda kind, *more: usual(kind, *more) if kind == "quoting" else missing(kind)
    )
    arguments = ["--model", "tiny", "--draft", "layers:0-1", "--tokens", "16", "--rounds", "2", "--threads", "1"]
    files = ["--json", str(tmp_path / "rows.json"), "--page", str(tmp_path / "page.md")]
    for _ in range(2):
        assert speculation.main([*arguments, *files]) == 0
    printed = capsys.readouterr().out
    assert "code is left out: not here" in printed
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 1 and rows[0]["kind"] == "quoting", "a later run takes the row's place"
    exact = {name for name, side in rows[0]["sides"].items() if side["same"]}
    assert exact >= {"plain", "speculative, 4", "speculative, adaptive", "prompt-lookup", "lookahead-pain"}
    page = (tmp_path / "page.md").read_text()
    assert all(f"| {name} |" in page for name in sides_of("x"))
    assert speculation.main(["--page-only", *files]) == 0


def _engine(model: Model, **options: Any) -> Any:
    from thrifty.engine.engine import Engine

    return Engine(model, **options)
