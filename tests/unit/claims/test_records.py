"""The record and its page: merged by row, written whole or not at all, and read back as they were."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from thrifty import claims
from thrifty.claims.harness import page as pages
from thrifty.claims.harness import records, versions
from thrifty.claims.harness.claim import Measurement
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, Part
from thrifty.claims.harness.records import ClaimRow, Run
from thrifty.claims.harness.running import merged, older, unclaimed
from thrifty.errors import StorageError
from thrifty.evaluation.recovery import Interval

DOCS = Path(__file__).parents[3] / "docs"
RUN = Run(
    commit="abc123",
    dirty=True,
    code="c0de",
    weights="f00d",
    seeds=(0, 1),
    verdicts={"0": "holds", "1": "holds"},
    tables=("[{'technique': 'kivi'}]",),
    half="judged",
    budget="20",
    threads=2,
    machine="a CPU, 2 cores",
    minutes=1.26,
    date="2026-01-02",
)
MEASURED = Measurement(
    headline=Part("recall | kept", Interval(0.97, 0.955, 0.985), Bar(0.95), paper="0.98"),
    parts=(Part("faster", Interval(2.0, 1.5, 2.5), Bar(3.6), void="others took 9%", unit="times"),),
    gates=(Part("bytes", missing="a cache"),),
    controls=(Control("random eviction", "lose", Interval(-0.5, -0.6, -0.4)),),
    counts={"keys": 100},
    setting="1024 tokens",
    told="one line",
)
ROW = ClaimRow("kivi", "tiny", "2.6 × | less", "arXiv:1", "≥ 2.6", "holds", MEASURED, RUN)
H2O = dataclasses.replace(ROW, technique="h2o", verdict="inconclusive")
STALE = ClaimRow("h2o", "tiny", "p", "s", "r", "stale", None, None, stale="2026-01-03: no memory")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    page = tmp_path / "new" / "claims.md"
    rows = {ROW.key: ROW, STALE.key: STALE}
    pages.write(rows, page, {"full": "cache"})
    assert records.read(records.record_of(page)) == rows


def test_the_record_says_what_a_reader_wants(tmp_path: Path) -> None:
    (row,) = json.loads(records.text_of({ROW.key: ROW}))["claims"]
    headline = row["measurement"]["headline"]
    assert headline["verdict"] == "holds" and headline["power"] == pytest.approx(0.015)
    assert headline["estimate"] == {"value": 0.97, "low": 0.955, "high": 0.985}
    assert row["run"]["commit"] == "abc123" and row["run"]["dirty"] and row["run"]["seeds"] == [0, 1]


def test_a_row_of_the_page_is_one_line_and_its_figures_stand_below() -> None:
    text = pages.markdown({ROW.key: ROW}, {"full": "cache", "new": "decoding"})
    (line,) = (line for line in text.splitlines() if line.startswith("| `kivi`"))
    assert line == (
        "| `kivi` | tiny | 2.6 × \\| less | recall \\| kept 97.0 % (95.5 % to 98.5 %; ≥ 95.0 %) | 1.5 % | **holds** |"
    )
    for words in (
        "needed: bytes: not testable (a cache)",
        "VOID: others took 9%: inconclusive",
        "random eviction (must lose) -0.500",
        "commit abc123, with changes, weights f00d",
        "seed 0: holds, 1: holds",
        "100 keys",
        "- `full` (cache): the baseline of its stage, which claims nothing.",
        "- `new` (decoding): no claim yet.",
    ):
        assert words in text


def test_a_row_tells_what_scores_of_heads_come_from() -> None:
    row = dataclasses.replace(ROW, run=dataclasses.replace(RUN, heads=("r: 12 of 16, 2026-01-02, seed 0",)))
    assert "scores of heads r: 12 of 16, 2026-01-02, seed 0; recipes: " in pages.markdown({row.key: row}, {})
    assert "scores of heads" not in pages.markdown({ROW.key: ROW}, {})


def test_a_row_says_what_a_reader_must_know_of_its_model() -> None:
    row = dataclasses.replace(ROW, model="recall-2m")
    assert "It was trained on these tasks' own sentences" in pages.markdown({row.key: row}, {})
    assert "It was trained on" not in pages.markdown({ROW.key: ROW}, {})


def test_a_stale_row_shows_its_reason_and_no_verdict() -> None:
    text = pages.markdown({STALE.key: STALE}, {})
    assert "| 2026-01-03: no memory | - | **stale** |" in text and "holds**:" not in text


def test_a_row_of_older_code_is_marked() -> None:
    text = pages.markdown({ROW.key: ROW, H2O.key: H2O}, {}, {H2O.key})
    assert "**inconclusive** (older code)" in text and "**holds** (older code)" not in text
    assert older({ROW.key: ROW}) == {ROW.key}, "no technique has the code 'c0de'"
    today = dataclasses.replace(RUN, code=versions.code("kivi"), beside=versions.beside(RUN.tables))
    rival = dataclasses.replace(today, tables=(*RUN.tables, "[{'technique': 'snapkv'}]"))
    for run, expected in ((today, set()), (rival, {ROW.key}), (dataclasses.replace(today, beside=""), {ROW.key})):
        assert older({ROW.key: dataclasses.replace(ROW, run=run)}) == expected


def test_a_partial_run_renews_its_row_alone() -> None:
    renewed = dataclasses.replace(ROW, verdict="holds")
    other = dataclasses.replace(ROW, model="large")
    rows = {ROW.key: ROW, H2O.key: H2O}
    assert merged(rows, renewed) == {ROW.key: renewed, H2O.key: H2O}
    assert merged(rows, other) == rows | {("kivi", "large"): other}


def test_rows_of_techniques_without_a_claim_go() -> None:
    gone = dataclasses.replace(ROW, technique="gone")
    assert gone.key not in merged({gone.key: gone}, ROW)


def test_a_kill_while_writing_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "claims.md"
    pages.write({ROW.key: ROW}, page, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def killed(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        pages.write({ROW.key: ROW, H2O.key: H2O}, page, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device; name another file with --output"):
        pages.write({ROW.key: ROW}, tmp_path / "claims.md", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 1, "claims": []}', '{"version": 2, "claims": [{"a": 1}]}', '{"version": 2}']
)
def test_a_damaged_or_older_record_is_not_thrown_away(tmp_path: Path, text: str) -> None:
    path = tmp_path / "claims.json"
    path.write_text(text)
    with pytest.raises(StorageError, match="is not a record of claims .*; move it away to start anew"):
        records.read(path)
    assert path.read_text() == text


def test_the_committed_page_is_what_its_record_says() -> None:
    rows = records.read(DOCS / "claims.json")
    mark = f" ({pages.OLDER})"
    expected = pages.markdown(rows, unclaimed()).replace(mark, "")
    committed = (DOCS / "claims.md").read_text(encoding="utf-8").replace(mark, "")
    assert committed == expected, "run `thrifty reproduce -o docs/claims.md`"


def test_the_committed_verdicts_follow_from_their_figures() -> None:
    for row in records.read(DOCS / "claims.json").values():
        claim = claims.load(row.technique)
        assert row.paper == claim.paper and row.rule == claim.rule and row.source == claim.source
        assert (row.measurement is None) == (row.verdict == records.STALE) == bool(row.stale)
        if row.measurement is not None and row.run is not None and len(row.run.seeds) == 1:
            assert row.measurement.verdict().value == row.verdict
