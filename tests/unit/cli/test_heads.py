"""`thrifty heads`: scores made, kept and shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thrifty.evaluation.heads import looking
from thrifty.evaluation.heads import probe as head_probe
from thrifty.evaluation.heads.items import ProbeItem, ProbeQuestion


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says what it is asked for, so that its looks count."""
    run = looking.said

    def said(engine: Any, item: ProbeItem, policy: Any) -> tuple[int, ...]:
        run(engine, item, policy)
        return item.tokens[-item.answer :]

    def answered(engine: Any, question: ProbeQuestion) -> looking.Answered:
        return looking.Answered(question.answered(question.expected))

    monkeypatch.setattr(looking, "said", said)
    monkeypatch.setattr(head_probe, "answered", answered)


def test_scores_are_made_shown_and_used(
    checkpoint: Path, thrifty: Callable[..., Any], knowing: None, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[cache]]\ntechnique = "headkv-r2"\ncapacity = 40\n')
    words = ("run", checkpoint, "hello " * 30, "--recipe", recipe, "--max-tokens", 2)
    refused = thrifty(*words)
    assert refused.code == 1 and "run `thrifty heads MODEL --kind r2` once" in refused.message
    probed = ("heads", checkpoint, "--length", 600, "--depths", 2)
    found = thrifty(*probed, "--recipe", recipe, "--json").json()
    assert set(found["kinds"]) == {"r2"}
    r2 = found["kinds"]["r2"]
    assert r2["used"] == r2["asked"] == 2 and Path(r2["path"]).parent == checkpoint
    assert thrifty(*words).code == 0
    shown = thrifty(*probed, "--kind", "r2")
    assert "2 of 2 questions answered" in shown.out and "Written to" in shown.out
    Path(r2["path"]).unlink()


def test_a_model_that_cannot_answer_is_told_so(checkpoint: Path, thrifty: Callable[..., Any]) -> None:
    found = thrifty("heads", checkpoint, "--length", 600, "--depths", 1, "--kind", "r")
    assert found.code == 1
    assert "not testable with this model: it answers 0 of 1 questions of the head probe 'r'" in found.message


def test_whole_heads_of_kvzip_are_measured_once_and_then_nothing_is_repeated(
    checkpoint: Path, thrifty: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[cache]]\ntechnique = "kvzip"\nlevel = "head"\nkeep = 0.5\n')
    words = ("run", checkpoint, "hello " * 30, "--recipe", recipe, "--max-tokens", 2)
    refused = thrifty(*words)
    assert refused.code == 1 and "run `thrifty heads MODEL --kind kvzip` once" in refused.message
    found = thrifty("heads", checkpoint, "--length", 200, "--recipe", recipe, "--json").json()["kinds"]["kvzip"]
    assert found["used"] == found["asked"] == 2 and found["settings"]["sample"] == 200
    assert thrifty(*words).code == 0
    Path(found["path"]).unlink()


def test_a_recipe_without_such_a_technique_is_refused(
    checkpoint: Path, thrifty: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    for text in ('[[cache]]\ntechnique = "kivi"\n', '[[cache]]\ntechnique = "kvzip"\n'):
        recipe.write_text(text)
        found = thrifty("heads", checkpoint, "--recipe", recipe)
        assert found.code == 1 and "needs scores of heads" in found.message
