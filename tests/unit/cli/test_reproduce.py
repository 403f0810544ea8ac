"""`thrifty reproduce`: what it prints and writes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thrifty import claims
from thrifty.claims import rtn
from thrifty.claims.harness import records


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtn, "PREFIX", 64)
    monkeypatch.setattr(rtn, "SCORED", 16)


@pytest.mark.usefixtures("small")
def test_one_claim_is_shown_and_written(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    page = tmp_path / "claims.md"
    found = thrifty("reproduce", "rtn", "--model", checkpoint, "-o", page, "--threads", 1)
    assert found.code == 0, found.err
    for words in ("paper says", "measured here", "setting", "verdict", "5.68"):
        assert words in found.out
    row = records.read(page.with_suffix(".json"))["rtn"]
    assert row.verdict in found.out and row.verdict in page.read_text()
    assert "cores" in row.machine and row.minutes >= 0


@pytest.mark.usefixtures("small")
def test_json(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    found = thrifty("reproduce", "rtn", "--model", checkpoint, "-o", tmp_path / "c.md", "--json", "--threads", 1)
    (claim,) = found.json()["claims"]
    assert claim["technique"] == "rtn" and claim["figures"]["full"] > 1 and not found.json()["interrupted"]


@pytest.mark.usefixtures("small")
def test_nothing_is_written_unasked(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "docs" / "claims.md"
    page.parent.mkdir()
    page.write_text("as it was")
    monkeypatch.chdir(tmp_path)
    found = thrifty("reproduce", "rtn", "--model", checkpoint, "--threads", 1)
    assert found.code == 0 and "Nothing was written; -o FILE adds it to a page." in found.out
    assert thrifty("reproduce", "rtn", "--model", checkpoint, "--threads", 1, "--json").json()["page"] is None
    assert page.read_text() == "as it was" and [one.name for one in page.parent.iterdir()] == ["claims.md"]


def test_ctrl_c_keeps_what_was_finished(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(context: Any) -> Any:
        raise KeyboardInterrupt

    claim = claims.load("rtn")
    monkeypatch.setattr(type(claim), "run", lambda self, context: interrupted(context))
    found = thrifty("reproduce", "rtn", "--model", checkpoint, "-o", tmp_path / "claims.md", "--threads", 1)
    assert found.code == 130 and "the claims that were finished are kept" in found.message


def test_a_context_that_is_too_short_is_said(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    found = thrifty("reproduce", "streaming", "--model", checkpoint, "-o", tmp_path / "claims.md", "--threads", 1)
    assert found.code == 1
    assert "streaming could not be measured: measuring quality takes 4610 tokens" in found.message
    assert not (tmp_path / "claims.md").exists()


def test_no_time_leaves_claims_out(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    found = thrifty("reproduce", "--all", "--minutes", 0, "--model", checkpoint, "-o", tmp_path / "c.md")
    assert found.code == 0 and "no time was left for ada-kv, fastgen, h2o" in found.message


@pytest.mark.usefixtures("small")
def test_a_recipe_names_its_techniques(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[weights]]\ntechnique = "rtn"\n[[cache]]\ntechnique = "full"\n')
    words = ("--model", checkpoint, "-o", tmp_path / "claims.md", "--threads", 1)
    found = thrifty("reproduce", "--recipe", recipe, *words, "--json")
    assert [claim["technique"] for claim in found.json()["claims"]] == ["rtn"]
    assert "no claim yet: full" in found.message


def test_without_a_name_the_claims_are_listed(thrifty: Callable[..., Any]) -> None:
    out = thrifty("reproduce").out
    assert "kivi" in out and "no claim yet" in out and "autoregressive" in out
    assert "full" in thrifty("reproduce", "--json").json()["no_claim_yet"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("kvii",), 1, "no claim is known of 'kvii'. Did you mean 'kivi'?"),
        (("full",), 1, "technique 'full' has no claim yet. Claims: ada-kv, fastgen, h2o"),
        (("kivi", "--all"), 2, "use one of a technique's name, --recipe and --all"),
        (("kivi", "-o", "claims.json"), 2, "claims.json cannot be the page."),
    ],
)
def test_mistakes(thrifty: Callable[..., Any], words: tuple[str, ...], code: int, message: str) -> None:
    found = thrifty("reproduce", *words)
    assert found.code == code and message in found.message
