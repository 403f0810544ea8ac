"""The record and its page: merged by row, written whole or not at all."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from thrifty.claims.harness import records
from thrifty.claims.harness.records import ClaimRow
from thrifty.claims.harness.running import merged, unclaimed
from thrifty.errors import StorageError

DOCS = Path(__file__).parents[3] / "docs"
ROW = ClaimRow(
    technique="kivi",
    paper="2.6 × | less",
    source="arXiv:1",
    measured="2.4 ×\nless",
    setting="tiny",
    rule="≥ 2.6",
    verdict="does not hold here",
    minutes=1.26,
    date="2026-01-02",
    machine="a CPU, 2 cores",
    figures={"ratio": 2.4},
)
H2O = dataclasses.replace(ROW, technique="h2o", verdict="holds")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    page = tmp_path / "new" / "claims.md"
    records.write({"kivi": ROW}, page, {"full": "cache"})
    assert records.read(records.record_of(page)) == {"kivi": ROW}


def test_a_row_of_the_page_is_one_line_with_all_that_is_asked(tmp_path: Path) -> None:
    text = records.markdown({"kivi": ROW}, {"full": "cache"})
    (line,) = (line for line in text.splitlines() if line.startswith("| `kivi`"))
    assert line == (
        "| `kivi` | 2.6 × \\| less (arXiv:1) | 2.4 × less | tiny | **does not hold here** | 1.3 | 2026-01-02 "
        "| a CPU, 2 cores |"
    )
    assert "- `kivi`: ≥ 2.6." in text and "- `full` (cache): no claim yet." in text


def test_a_partial_run_renews_its_row_alone() -> None:
    renewed = dataclasses.replace(ROW, verdict="holds")
    assert merged({"kivi": ROW, "h2o": H2O}, renewed) == {"kivi": renewed, "h2o": H2O}


def test_rows_of_techniques_without_a_claim_go() -> None:
    assert "gone" not in merged({"gone": dataclasses.replace(ROW, technique="gone")}, ROW)


def test_a_kill_while_writing_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "claims.md"
    records.write({"kivi": ROW}, page, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def killed(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        records.write({"kivi": ROW, "h2o": H2O}, page, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device; name another file with --output"):
        records.write({"kivi": ROW}, tmp_path / "claims.md", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 99, "claims": []}', '{"version": 1, "claims": [{"a": 1}]}'])
def test_a_damaged_record_is_not_thrown_away(tmp_path: Path, text: str) -> None:
    path = tmp_path / "claims.json"
    path.write_text(text)
    with pytest.raises(StorageError, match="is not a record of claims .*; move it away to start anew"):
        records.read(path)


def test_the_committed_page_is_what_its_record_says() -> None:
    rows = records.read(DOCS / "claims.json")
    assert {"kivi", "h2o", "snapkv", "ada-kv", "streaming"} <= set(rows)
    expected = records.markdown(rows, unclaimed())
    assert (DOCS / "claims.md").read_text(encoding="utf-8") == expected, "run `thrifty reproduce NAME`"


def test_the_committed_verdicts_follow_from_their_figures() -> None:
    from thrifty import claims

    for name, row in records.read(DOCS / "claims.json").items():
        claim = claims.load(name)
        figures = dict(row.figures)
        assert claim.judge(figures).value == row.verdict
        assert claim.tell(figures) == row.measured
        assert claim.paper == row.paper and claim.rule == row.rule
