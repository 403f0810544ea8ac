"""Every table of the command line at the widths that terminals have: numbers whole, no column empty, rows of few
lines, no line wider than there is room.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from tests.checkpoint import write_checkpoint

from thrifty import registry
from thrifty.cli.commands import bench, heads
from thrifty.cli.shared import eval_table, frontier_table, layout, output
from thrifty.cli.shared.layout import Column, Layout
from thrifty.evaluation.quality import Quality
from thrifty.evaluation.recovery import Interval
from thrifty.evaluation.roofline import roofline
from thrifty.frontier.candidates import Candidate, Grid
from thrifty.frontier.measurement import DIVERGENCE, TASKS, Measurement, Need, Scored
from thrifty.frontier.rungs import ladder
from thrifty.frontier.space import off_grid, space
from thrifty.recipe import Recipe

WIDTHS = (60, 80, 100, 120)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@dataclass(frozen=True)
class Drawn:
    """A table that was drawn, with all its columns, and what there was room for."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    found: Layout

    @property
    def numbers(self) -> list[str]:
        """The figures of the columns that are shown."""
        places = [place for place in self.found.places if self.columns[place].number]
        return [row[place] for row in self.rows for place in places if row[place]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Drawn]:
    """The tables that are drawn from now on."""
    tables: list[Drawn] = []

    def recording(columns: Any, rows: Any, found: Layout, *rest: Any, **more: Any) -> Any:
        tables.append(Drawn(columns, list(rows), found))
        return layout.grid(columns, rows, found, *rest, **more)

    monkeypatch.setattr(output, "grid", recording)
    monkeypatch.setattr(frontier_table, "grid", recording)
    return tables


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """What COLUMNS says."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def check(text: str, tables: Sequence[Drawn], width: int) -> None:
    """What holds for every table that was printed to stay as `text`."""
    check_room(text, tables, width)
    for name in {name for table in tables for name in table.found.omitted}:
        assert name in " ".join(text.split()), "what is left out is said"


def check_room(text: str, tables: Sequence[Drawn], width: int) -> None:
    """Numbers are whole, nothing is wider than `width`, and no column is empty."""
    lines = text.splitlines()
    assert tables and lines
    assert not [line for line in lines if cell_len(line) > width]
    for table in tables:
        assert len(table.found.places) >= 2, "the first column says nothing alone"
        for place, column_width in zip(table.found.places, table.found.widths, strict=True):
            cells = [row[place] for row in table.rows]
            assert column_width >= (max(map(cell_len, cells)) if table.columns[place].number else 4)
        for number in table.numbers:
            assert any(number in line for line in lines), f"{number} is cut"
        if any(column.name for column in table.columns):
            assert max(table.found.height(row) for row in table.rows) <= 3
            assert len(table.found.places) + len(table.found.omitted) == len(table.columns)


@pytest.mark.parametrize("words", ["models", "techniques", "reproduce", "roofline --list"], ids=lambda words: words)
def test_lists(words: str, thrifty: Callable[..., Any], drawn: list[Drawn], width: int) -> None:
    check(thrifty(*words.split()).out, drawn, width)


def test_every_card(thrifty: Callable[..., Any], drawn: list[Drawn], width: int) -> None:
    for stage in registry.STAGES:
        for name in registry.names(stage):
            drawn.clear()
            check(thrifty("techniques", name).out, drawn, width)


def test_roofline(thrifty: Callable[..., Any], drawn: list[Drawn], width: int, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "llama")
    check(thrifty("roofline", folder, "--machine", "raspberry-pi-5", "--length", 2048).out, drawn, width)
    assert len(drawn) == 2


def test_doctor(thrifty: Callable[..., Any], drawn: list[Drawn], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "BUFFER_MEGABYTES", 16)
    monkeypatch.setattr(roofline, "REPEATS", 1)
    check(thrifty("doctor", "--threads", 1).out, drawn, width)


def test_bench(drawn: list[Drawn], width: int, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        str(context): {
            "prefill_tok_s": 12345.6,
            "decode_tok_s": 1234.5,
            "bytes_per_token": 98_765_432_100,
            "roofline_fraction": 0.987,
        }
        for context in (128, 131072)
    }
    shares = {kind: {"us_per_token": 123456.7, "bytes": 10**9} for kind in ("attention", "query, key, value", "logits")}
    bench._table(
        {
            "model": "m",
            "recipe": "as shipped",
            "contexts": rows,
            "bandwidth_gb_s": 33.3,
            "peak_rss_mb": 4321.0,
            "ledger_peak_mb": 1234.0,
            "others_share": 0.0,
        }
    )
    bench._profile_table("131072", {"decode": shares, "prefill": shares})
    check(capsys.readouterr().out, drawn, width)


def test_heads(drawn: list[Drawn], width: int, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    scores = np.random.default_rng(0).random((30, 9), np.float32)
    probed = SimpleNamespace(kind="r2", used=14, asked=16, layers=list(range(30)), array=lambda: scores)
    heads._show(probed, Path("scores.json"), dict.fromkeys(range(30), 3))  # type: ignore[arg-type]
    check(capsys.readouterr().out, drawn, width)


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1234, "high": value + 0.1234}


def test_eval(drawn: list[Drawn], width: int, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "task": task,
            "metric": "share of numbers found",
            "items": 1000,
            "baseline": interval(0.75),
            "score": interval(0.5),
            "recovery": None if task == "choice" else interval(0.6667),
            "undefined": "undefined: the baseline scores 0" if task == "choice" else None,
            "beside": {"kl": 12.3456, "top-1": 0.9, "nll": 5.4321},
            "beside_baseline": {"kl": 0.0, "top-1": 1.0, "nll": 5.4},
        }
        for task in ("recall-many:keys=12,mode=aware", "choice", "perplexity")
    ]
    document = {"model": "m", "recipe": "kivi", "length": 512, "seed": 0, "weights": "as shipped", "tasks": rows}
    document["baseline"] = {"label": "uncompressed", "techniques": [], "bits_per_weight": 16.0}
    eval_table.show(document)
    text = capsys.readouterr().out
    check(text, drawn, width)
    assert "choice: recovery is undefined: the baseline scores 0" in " ".join(text.split())


def test_eval_protocol(drawn: list[Drawn], width: int, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "items": 1000,
        "baseline": interval(0.75),
        "score": interval(0.5),
        "recovery": interval(0.6667),
        "undefined": None,
        "rouge_1": 0.1234,
        "rouge_l": 0.1234,
        "same_tokens": 123.4,
        "tokens": 256.0,
        "identical": 0.99,
    }
    formats = ("W8A8: rtn 8, activations int8 per 32", "cache: kivi 2")
    rows = [row | {"format": name, "task": task} for name in formats for task in ("continuation", "aggregation")]
    eval_table.show_protocol({"model": "m", "length": 512, "seed": 0, "not_reported": "BERTScore", "rows": rows})
    check(capsys.readouterr().out, drawn, width)


# --- the frontier ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched() -> Any:
    """A search that measured the whole space, with figures as long as they become."""
    own = Candidate(Recipe(name="mine", cache=[{"technique": "headkv", "capacity": 1024}]), Grid.SHIPPED)
    candidates = [*space(3774), own, *off_grid()]
    rows = [measured(candidate, place) for place, candidate in enumerate(candidates)]
    return SimpleNamespace(
        question=SimpleNamespace(context=131072, batch=32, minutes=4.0),
        rungs=ladder(3774, 256),
        total=3 * len(rows),
        measured=rows,
        best=rows[1],
    )


def measured(candidate: Candidate, place: int) -> Measurement:
    figure = Interval(0.9 + place / 1000, 0.8, 1.0)
    return Measurement(
        candidate=candidate,
        need=Need(123_456_700_000 + place, 10**6, 10**9, 10**9),
        fits=place % 3 > 0,
        prompt=3774,
        ledger_peak=123_456_789_000,
        ledger_steady=123_456_789_000,
        process_peak=234_567_890_000,
        prefill_rate=12345.6 + place,
        decode_rate=1234.5 + place,
        quality=None if candidate.uncompressed else Quality(Interval(10.1234, 0, 20), figure, None, 2.0, 256),
        rung=2 if place < 6 else 0,
        stage=TASKS if place < 6 else DIVERGENCE,
        tasks={"recall": Scored(0.5, figure, 12)},
    )


def test_the_frontier(searched: Any, drawn: list[Drawn], width: int, capsys: pytest.CaptureFixture[str]) -> None:
    with frontier_table.Watcher(searched, quiet=False) as watcher:
        watcher.add(watcher.fit.measured[0])
    text = capsys.readouterr().out.partition("\n")[2]
    check(text, drawn, width)
    (table,) = drawn
    assert len(table.rows) == frontier_table.SHOWN and table.rows[0][0].startswith("★ ")
    shown = [table.columns[place].name for place in table.found.places]
    assert shown[:4] == ["recipe", "fits", "needs MB", "KL"]
    assert "recovery" in shown and ("decode tok/s" in shown) == (width >= 80)


def test_the_frontier_without_a_terminal_is_whole(
    searched: Any, drawn: list[Drawn], capsys: pytest.CaptureFixture[str]
) -> None:
    with frontier_table.Watcher(searched, quiet=False) as watcher:
        watcher.add(watcher.fit.measured[0])
    check(capsys.readouterr().out.partition("\n")[2], drawn, output.WIDTH)
    assert not drawn[0].found.omitted


class Terminal(io.StringIO):
    """Standard output and error of a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("colours", [True, False])
def test_the_live_view(
    searched: Any, drawn: list[Drawn], width: int, colours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("LINES", "24")
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with frontier_table.Watcher(searched, quiet=False) as watcher:
        for row in watcher.fit.measured[:3]:
            watcher.add(row)
        watcher.live.refresh()
        text = ESCAPES.sub("", terminal.getvalue()).replace("\r", "\n")
        check_room(text, drawn[-1:], width)
        heights = [drawn[-1].found.height(row) for row in drawn[-1].rows]
        assert 10 < sum(heights) <= 24 - 4, "the screen is used, and nothing is cut at its foot"
        assert "measuring recipes" in text and "3/" in text


def test_a_message_stands_above_the_live_view(searched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    for name, value in {"TERM": "xterm-256color", "LINES": "24", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with frontier_table.Watcher(searched, quiet=False) as watcher:
        watcher.live.refresh()
        before = len(terminal.getvalue())
        output.note("94 recipes predicted")
        output.warn("one was left out")
        written = terminal.getvalue()[before:]
    assert written.startswith("\r\x1b[2K\x1b[1A"), "the view is wiped before the message is written"
    lines = ESCAPES.sub("", written).replace("\r", "\n").splitlines()
    assert "94 recipes predicted" in map(str.strip, lines) and "Warning: one was left out" in map(str.strip, lines)


# --- the layout --------------------------------------------------------------------------------------


def test_columns_are_given_room_by_their_rank() -> None:
    columns = (Column("name", number=False), Column("first", rank=2), Column("second", rank=1), Column("third", rank=3))
    rows = [("a", "11111", "222222", "33333")]
    assert layout.layout(columns, rows, 40) == Layout((0, 1, 2, 3), (4, 5, 6, 5), ())
    assert layout.layout(columns, rows, 25) == Layout((0, 1, 2), (4, 5, 6), ("third",))
    assert layout.layout(columns, rows, 12) == Layout((0, 2), (4, 6), ("first", "third"))


def test_texts_get_the_room_that_is_left() -> None:
    columns = (Column("a", number=False), Column("n"))
    rows = [("six words that need some room", "1.5")]
    assert layout.layout(columns, rows, 60).widths == (29, 3)
    narrow = layout.layout(columns, rows, 20)
    assert narrow.widths == (15, 3) and narrow.height(rows[0]) == 2


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("", 5, 1),
        ("abc", 3, 1),
        ("abcd", 3, 2),
        ("ab cd", 5, 1),
        ("ab cd", 4, 2),
        ("a bcdefg h", 3, 4),
        ("äöü 漢字", 7, 2),
    ],
)
def test_lines_are_counted_as_they_are_drawn(text: str, width: int, lines: int) -> None:
    from rich.console import Console
    from rich.text import Text

    assert layout.lines_of(text, width) == lines
    assert len(Text(text).wrap(Console(), width, overflow="fold")) == lines


def test_short_names_keep_what_tells_recipes_apart() -> None:
    candidates = [*space(3774), *off_grid()]
    labels = [frontier_table.short_label(candidate) for candidate in candidates]
    assert len(set(labels)) == len({candidate.key for candidate in candidates}) == len(labels)
    assert "rtn 4, group 128, embedding 4 + snapkv 448 + kivi 4" in labels
    assert {"as shipped", "as shipped (off the grid)", "kivi 2, group 16"} <= set(labels)
    assert max(map(len, labels)) <= 64
