"""What goes wrong after a long search is told beside its result, with --json in the same line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.quiet import make_quiet
from tests.searches import MACHINE

from thrifty.errors import RecipeError
from thrifty.frontier.space import space
from thrifty.recipe import Recipe

FIT = ("--context", 2048, "--prefix", 1024, "--scored", 8, "--threads", 1, "--items", 1, "--tasks", "", "--prompt", "")


@pytest.fixture(autouse=True)
def small_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two recipes on a known machine, with a state of the test's own."""
    monkeypatch.setattr("thrifty.frontier.state.cache_directory", lambda: tmp_path / "states")
    monkeypatch.setattr("thrifty.frontier.workshop.this_machine", lambda threads, sparing: MACHINE)
    monkeypatch.setattr(
        "thrifty.frontier.question.space",
        lambda prefix, **_: [one for one in space(prefix) if one.label in ("as shipped", "kivi(bits=4)")],
    )
    monkeypatch.setattr("thrifty.cli.shared.fit_search._profile", lambda *_: None)
    make_quiet(monkeypatch)


def test_a_recipe_that_cannot_be_written_costs_no_result(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Recipe, path: Path) -> None:
        raise RecipeError(f"cannot write recipe '{path}': no room")

    monkeypatch.setattr(Recipe, "save", full)
    words = ("fit", checkpoint, "--memory", "1GB", *FIT, "-o", tmp_path / "r.toml")
    result = thrifty(*words, "--json")
    assert result.code == 1 and result.out.count("\n") == 1
    document = result.json()
    assert document["kind"] == "RecipeError" and "no room" in document["error"]
    assert document["recipe_file"] is None and document["best"]["recipe"] == "as shipped" and document["candidates"]
    people = thrifty(*words)
    assert people.code == 1 and "no room" in people.message and "Written to" not in people.out


def test_a_report_that_cannot_be_written_costs_no_result(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: str) -> None:
        raise OSError(28, "No space left on device", str(path)) if path.suffix == ".html" else None

    monkeypatch.setattr("thrifty.files.replace_file", full)
    words = ("fit", checkpoint, "--memory", "1GB", *FIT, "-o", tmp_path / "r.toml", "--report", tmp_path / "r.html")
    result = thrifty(*words, "--json")
    assert result.code == 1 and result.out.count("\n") == 1
    assert result.json()["kind"] == "StorageError" and result.json()["recipe_file"] == str(tmp_path / "r.toml")
    assert (tmp_path / "r.toml").exists() and result.json()["winner"] == 0


@pytest.mark.parametrize(
    ("words", "kind"), [(("--memory", "1kB"), "BudgetError"), (("--memory", "1GB", "--tasks", "recal"), "TaskError")]
)
def test_a_question_that_has_no_answer_is_json_too(
    words: tuple[str, ...], kind: str, thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    result = thrifty("fit", checkpoint, *FIT, *words, "-o", tmp_path / "r.toml", "--json")
    assert result.code == 1 and set(result.json()) == {"error", "kind"} and result.json()["kind"] == kind


def test_a_winner_that_is_missing_has_its_kind(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thrifty.frontier.measurement.expected_step", lambda *_: 0.5)
    result = thrifty(
        "fit", checkpoint, "--memory", "1GB", *FIT, "-o", tmp_path / "r.toml", "--latency", "400ms", "--json"
    )
    assert result.code == 1 and result.json()["kind"] == "BudgetError" and result.json()["winner"] is None
    assert result.json()["error"].endswith("Nothing was written.")


def test_recipes_left_out_for_one_reason_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from thrifty.cli.shared.fit_search import _say_skipped
    from thrifty.frontier.candidates import of_recipe

    skipped = [(of_recipe(Recipe(name=name)), reason) for name, reason in (("a", "no"), ("b", "never"), ("c", "no"))]
    _say_skipped(SimpleNamespace(skipped=skipped))  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == [
        "Warning: a and 1 more were left out: no",
        "Warning: b was left out: never",
    ]
