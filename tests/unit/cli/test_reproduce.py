"""`thrifty reproduce`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thrifty import claims
from thrifty.claims.harness import records, state
from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.parts import Bar, exactly, kept
from thrifty.cli.shared import ticker

LOAD = claims.load


class SmallClaim(Claim):
    """Bytes of a quantised cache, and what the first items of recall score."""

    paper, source, rule, minutes = "5.68 × less", "arXiv:1", "at most half the bytes", 1.0

    def measure(self, context: Context) -> Measurement:
        context.budget = context.budget.__class__(**{**vars(context.budget), "items": 2})
        full = context.recall([], length=400)
        ours = context.recall([{"technique": "kivi", "bits": 2}], length=400)
        share = context.held([{"technique": "kivi", "bits": 2}], 512) / context.held([], 512)
        return Measurement(
            headline=exactly("bytes of the full cache's", share, Bar(0.99, at_least=False)),
            parts=(kept("recall", ours, full, Bar(0.9)),),
            counts={"keys": len(ours)},
            setting="512 tokens",
        )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A claim that is measured in milliseconds in the place of that of rtn."""
    monkeypatch.setattr(claims, "load", lambda name: SmallClaim() if name == "rtn" else LOAD(name))
    monkeypatch.setattr(state, "cache_directory", lambda: tmp_path / "cache")


@pytest.mark.usefixtures("small")
def test_one_claim_is_planned_shown_and_written(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticker, "PERIOD", 0.01)
    page = tmp_path / "claims.md"
    words = ("--model", checkpoint, "-o", page, "--threads", 1, "--minutes", 20)
    answer = thrifty("reproduce", "rtn", *words)
    assert answer.code == 0, answer.err
    assert (
        "1 claims on" in answer.message and "about 1 minutes" in answer.message and "of 20 there are" in answer.message
    )
    assert re.search(r"0 of 1 claims, [1-9]\d* results measured in \d+ s", answer.message), answer.message
    for text in ("paper says", "headline", "setting", "verdict", "5.68"):
        assert text in answer.out
    row = records.read(page.with_suffix(".json"))["rtn", str(checkpoint)]
    assert row.verdict == "holds" and row.verdict in answer.out and row.verdict in page.read_text()
    assert row.run is not None and "cores" in row.run.machine and row.run.threads == 1 and row.run.weights


@pytest.mark.usefixtures("small")
def test_a_second_run_goes_on_from_the_results_of_the_first(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    words = ("reproduce", "rtn", "--model", checkpoint, "--threads", 1, "--json")
    first, second = thrifty(*words), thrifty(*words)
    assert "going on from" not in first.message and "going on from 6 results of an earlier run" in second.message
    own, again = (answer.json()["claims"][0]["measurement"] for answer in (first, second))
    assert own == again


@pytest.mark.usefixtures("small")
def test_json_and_seeds(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    words = ("--model", checkpoint, "--threads", 1, "--seed", 3, "--seed", 4)
    document = thrifty("reproduce", "rtn", "-o", tmp_path / "c.md", "--json", *words).json()
    (claim,) = document["claims"]
    assert claim["technique"] == "rtn" and claim["measurement"]["headline"]["verdict"] == "holds"
    assert claim["run"]["seeds"] == [3, 4] and not document["interrupted"]


@pytest.mark.usefixtures("small")
def test_no_page_is_written_unasked(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "docs" / "claims.md"
    page.parent.mkdir()
    page.write_text("as it was")
    monkeypatch.chdir(tmp_path)
    answer = thrifty("reproduce", "rtn", "--model", checkpoint, "--threads", 1)
    assert answer.code == 0 and "Nothing was written; -o FILE adds it to a page." in answer.out
    assert thrifty("reproduce", "rtn", "--model", checkpoint, "--threads", 1, "--json").json()["page"] is None
    assert page.read_text() == "as it was" and [path.name for path in page.parent.iterdir()] == ["claims.md"]


@pytest.mark.usefixtures("small")
def test_ctrl_c_keeps_what_was_measured(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Context, cache: Any, length: int) -> int:
        raise KeyboardInterrupt

    words = ("reproduce", "rtn", "--model", checkpoint, "-o", tmp_path / "claims.md", "--threads", 1)
    with monkeypatch.context() as patched:
        patched.setattr(Context, "held", interrupted)
        answer = thrifty(*words)
    assert answer.code == 130 and "what was measured is kept; the same command goes on" in answer.message
    assert not (tmp_path / "claims.md").exists()
    assert "going on from 4 results" in thrifty(*words).message and (tmp_path / "claims.md").exists()


def test_a_context_that_is_too_short_is_said_and_the_row_is_stale(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Long(SmallClaim):
        def measure(self, context: Context) -> Measurement:
            context.losses([], prefix=10**6)
            raise AssertionError("the context is too short")

    monkeypatch.setattr(claims, "load", lambda name: Long())
    monkeypatch.setattr(state, "cache_directory", lambda: tmp_path / "cache")
    page = tmp_path / "claims.md"
    answer = thrifty("reproduce", "rtn", "--model", checkpoint, "-o", page, "--threads", 1)
    assert answer.code == 1 and "could not be measured: a passage of 1000000 + 256 tokens needs" in answer.message
    (row,) = json.loads(page.with_suffix(".json").read_text())["claims"]
    assert row["verdict"] == "stale" and "a passage of 1000000" in row["stale"]


@pytest.mark.usefixtures("small")
def test_a_page_is_written_again_from_its_record(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    page = tmp_path / "claims.md"
    thrifty("reproduce", "rtn", "--model", checkpoint, "-o", page, "--threads", 1)
    before = page.read_text()
    page.write_text("lost")
    answer = thrifty("reproduce", "-o", page)
    assert answer.code == 0 and "from its record" in answer.out and page.read_text() == before
    assert thrifty("reproduce", "-o", tmp_path / "none.md").code == 2


def test_no_time_leaves_claims_out(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    answer = thrifty("reproduce", "--all", "--minutes", 0, "--model", checkpoint, "-o", tmp_path / "c.md")
    assert answer.code == 0 and "no time was left for ada-kv on" in answer.message


@pytest.mark.usefixtures("small")
def test_a_recipe_names_its_techniques(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[weights]]\ntechnique = "rtn"\n[[cache]]\ntechnique = "full"\n')
    words = ("--model", checkpoint, "-o", tmp_path / "claims.md", "--threads", 1)
    answer = thrifty("reproduce", "--recipe", recipe, *words, "--json")
    assert [claim["technique"] for claim in answer.json()["claims"]] == ["rtn"]
    assert "no claim yet: full" in answer.message


def test_without_a_name_the_claims_are_listed(thrifty: Callable[..., Any]) -> None:
    out = thrifty("reproduce").out
    assert "kivi" in out and "no claim yet" in out and "autoregressive" in out
    document = thrifty("reproduce", "--json").json()
    assert "full" in document["no_claim_yet"] and "random-eviction" not in document["no_claim_yet"]
    assert all(claim["models"] for claim in document["claims"])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("kvii",), 1, "no claim is known of 'kvii'. Did you mean 'kivi'?"),
        (("full",), 1, "technique 'full' has no claim yet. Claims: ada-kv, amp, any-precision"),
        (("kivi", "--all"), 2, "use one of technique names, --recipe and --all"),
        (("kivi", "-o", "claims.json"), 2, "claims.json cannot be the page."),
        (("kivi", "--minutes", "overnite"), 1, "use a number of minutes or 'overnight'"),
    ],
)
def test_mistakes(thrifty: Callable[..., Any], words: tuple[str, ...], code: int, message: str) -> None:
    answer = thrifty("reproduce", *words)
    assert answer.code == code and message in answer.message
