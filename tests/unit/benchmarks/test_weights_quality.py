"""The table of weight techniques: its rows, what it keeps, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import weights_peers, weights_quality
from benchmarks.weights_table import BEGIN, END, Rows, put, read, write
from tests.tiny import tiny_model

from thrifty import registry
from thrifty.models.model import Model

INTERVAL = {"value": 0.5, "low": 0.25, "high": 1.0}
KEY = {"model": "m", "view": "offgrid", "weights": [], "passages": ["passage 0", "passage 256"]}


def of(recipe: list[dict[str, object]]) -> dict[str, object]:
    return KEY | {"weights": recipe}


@pytest.mark.parametrize("name", registry.names("weights"))
def test_every_technique_has_rows_that_are_recipes(name: str) -> None:
    tables = list(weights_quality.tables_of(name, None))
    assert tables and all(registry.build("weights", table).name == name for table in tables)
    assert len({json.dumps(table) for table in tables}) == len(tables)


def test_widths_may_be_chosen() -> None:
    assert list(weights_quality.tables_of("rtn", [4])) == [
        {"technique": "rtn", "bits": 4, "group": 32}, {"technique": "rtn", "bits": 4, "group": 128},
    ]  # fmt: skip


def test_rows_are_chosen_by_name_and_the_uncompressed_model_stays() -> None:
    options = weights_quality.parse(["--rows", "rtn(bits=4, group=32*", "--rows", "gguf:Q4_?"])
    labels = [row.label for row in weights_quality.rows_of(options)]
    assert labels == ["uncompressed", "rtn(bits=4, group=32)", "gguf:Q4_0", "gguf:Q4_1"]
    everything = weights_quality.rows_of(weights_quality.parse([]))
    named = {row.recipe[0]["technique"] for row in everything if row.recipe}
    assert named == set(registry.names("weights"))
    assert {row.peer for row in everything if row.peer} == set(weights_peers.names())


def test_what_does_not_fit_a_model_is_listed_with_the_reason_and_not_tried_again() -> None:
    rows, puzzle = Rows(), of([{"technique": "puzzlemoe"}])
    rows.add(KEY, {"bits": 16.0, "recovery": INTERVAL, "commit": "abc", "date": "2026-01-02"})
    rows.add(puzzle, {"unfit": "no experts"})
    assert rows.has(puzzle)
    assert rows.table()[2:] == [
        "| technique | bits a weight | tasks kept | made at | on |",
        "|---|---:|---:|---:|---:|",
        "| uncompressed | 16.00 | 0.500 (0.250 to 1.000) | abc | 2026-01-02 |",
        "",
        "Not for this model:",
        "",
        "- puzzlemoe: no experts",
    ]


def test_a_technique_that_a_model_has_no_part_for_becomes_a_reason() -> None:
    bench = weights_quality.Bench([], [], [], [])
    row = weights_quality.Row(({"technique": "puzzlemoe"},))
    assert "expert" in weights_quality.tried(tiny_model(layers=1), row, bench, 1)["unfit"]
    absent = weights_quality.Row(peer="nobody:Q4")
    assert (
        "no peer 'nobody'; there are llama.cpp"
        in weights_quality.tried(tiny_model(layers=1), absent, bench, 1)["error"]
    )


def test_a_peers_rounding_is_that_of_its_format() -> None:
    pytest.importorskip("gguf")
    view = tiny_model(layers=1, packed=True)
    made = weights_peers.make(view, "gguf:Q4_0", 1)
    assert made.bits == pytest.approx(4.5)
    name = "layers.0.mlp.up"
    weight = view.linears[name].dequantize()
    found = made.model.linears[name].dequantize()
    for row in range(0, len(weight), 7):  # ggml's Q4_0: d = the largest value by magnitude / -8, q = x / d + 8.5 cut
        for start in range(0, weight.shape[1], 32):
            block = weight[row, start : start + 32]
            step = np.float32(np.float16(block[np.abs(block).argmax()] / -8))
            codes = np.clip(np.floor(block / step + 8.5), 0, 15) if step else np.full(32, 8)
            np.testing.assert_allclose(
                found[row, start : start + 32], (codes - 8) * step, rtol=1e-2, atol=abs(step) * 1.01
            )
    assert made.model.linears["embedding"] is view.linears["embedding"]


def test_rows_come_back_and_failures_are_tried_again(tmp_path: Path) -> None:
    rows, path = Rows(), tmp_path / "weights.json"
    assert not read(path).held
    rows.add(KEY, {"bits": 16.0, "kl": INTERVAL})
    rows.add(of([{"technique": "rtn"}]), {"error": "no room"})
    write(path, rows)
    again = read(path)
    assert again.has(KEY) and not again.has(of([{"technique": "rtn"}])) and not again.has(of([{"technique": "hqq"}]))
    again.add(KEY, {"decode": 12.34})
    assert again.held != rows.held and again.table()[4] == "| uncompressed | 16.00 | 0.5000 (0.2500 to 1.0000) | 12.3 |"


def test_the_table_goes_between_its_marks(tmp_path: Path) -> None:
    rows, page = Rows(), tmp_path / "weights.md"
    rows.add(of([{"technique": "rtn", "bits": 4}]), {"bits": 5.0, "kl": INTERVAL, "bytes": 84_200_000})
    rows.add(KEY, {"bits": 16.0, "bytes": 270_000_000})
    rows.add(of([{"technique": "hqq"}]), {"error": "no room"})
    page.write_text(f"Before\n\n{BEGIN}\n\nBehind\n")
    for _ in range(2):  # the second time it replaces the first one's
        table = put(page, rows)
        assert page.read_text() == f"Before\n\n{BEGIN}\n\n{table}\n\n{END}\nBehind\n"
    assert table.splitlines() == [
        "**m**, off-grid view (weights that lie on no grid), 2 passages of prose",
        "",
        "| technique | bits a weight | KL, nats | size MB |",
        "|---|---:|---:|---:|",
        "| uncompressed | 16.00 | – | 270.0 |",
        "| rtn(bits=4) | 5.00 | 0.5000 (0.2500 to 1.0000) | 84.2 |",
        "| hqq | failed: no room | – | – |",
    ]
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no line <!-- table: weights.json -->: put it where the table belongs"):
        put(page, rows)


@pytest.mark.long
def test_a_model_is_measured_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def load(name: str, threads: int | None) -> Model:
        loads.append(name)
        return tiny_model(layers=1, context_length=512)

    monkeypatch.setattr(weights_quality, "load", load)
    words = ["--models", "tiny", "--peers", "", "--tasks", "", "--techniques", "hqq", "--bits", "4"]
    words += ["--passages", "2", "--threads", "1"]
    words += ["--json", str(tmp_path / "weights.json"), "--page", str(tmp_path / "none.md")]
    (tmp_path / "own.toml").write_text('[[weights]]\ntechnique = "rtn"\nbits = 8\n')
    assert weights_quality.main(words) == 0
    held = [figures for _, figures in read(tmp_path / "weights.json").held.values()]
    assert [own["bits"] for own in held][1:] == pytest.approx([5.0, 4.25])
    assert held[0]["kl"]["value"] < 1e-6 < held[1]["kl"]["value"] and held[0]["tokens"] == 512
    assert held[1]["kl"]["low"] <= held[1]["kl"]["value"] <= held[1]["kl"]["high"] and held[1]["seconds"] >= 0
    assert weights_quality.main([*words, "--recipe", str(tmp_path / "own.toml")]) == 0
    assert list(read(tmp_path / "weights.json").held.values())[-1][1]["bits"] == pytest.approx(9.0)
    before = (tmp_path / "weights.json").read_text()
    assert weights_quality.main([*words, "--page-only"]) == 0 and len(loads) == 2
    assert weights_quality.main(words) == 0 and (tmp_path / "weights.json").read_text() == before
