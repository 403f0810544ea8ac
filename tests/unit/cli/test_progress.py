"""How far long commands are, where no terminal shows a bar."""

from __future__ import annotations

import io
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thrifty.cli.shared import output, ticker
from thrifty.cli.shared.progress import Steps, progress


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticker, "PERIOD", 0.02)


@pytest.mark.usefixtures("hurried")
def test_an_evaluation_tells_what_how_far_and_how_long(thrifty: Callable[..., Any], checkpoint: Path) -> None:
    words = ("eval", checkpoint, "--tasks", "choice", "--items", 9, "--length", 400, "--threads", 1, "--json")
    found = thrifty(*words)
    assert found.code == 0 and found.out.count("\n") == 1, "standard output holds the result alone"
    lines = [line for line in found.err.splitlines() if line.startswith("evaluating: ")]
    assert lines[0] == "evaluating: 0 of 9 in 0 s"
    assert any(re.match(r"evaluating: [1-8] of 9 in ", line) for line in lines)
    assert all(line.endswith(" s left") for line in lines if " 0 of " not in line)


def test_no_line_comes_before_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("evaluating", 3) as steps, output.waiting("loading"):
        steps.advance()
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("hurried")
def test_waiting_is_told_too_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with output.waiting("loading a model"):
        time.sleep(0.1)
    told = capsys.readouterr().err.splitlines()
    assert told and set(told) == {"loading a model: 0 s so far"}
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_the_time_that_is_left() -> None:
    steps = Steps("evaluating", 10)
    assert steps.line(5.0) == "evaluating: 0 of 10 in 5 s"
    steps.advance()
    assert steps.line(10.0) == "evaluating: 1 of 10 in 10 s, about 90 s left"
    assert steps.line(400.0) == "evaluating: 1 of 10 in 7 min, about 60 min left"
    assert steps.line(4000.0) == "evaluating: 1 of 10 in 67 min, about 10.0 h left"
    for _ in range(11):
        steps.advance()
    assert steps.line(10.0) == "evaluating: 12 of 12 in 10 s, about 0 s left"


def test_no_more_time_is_promised_than_there_is() -> None:
    steps = Steps("measuring recipes", 88, limit=60.0)
    assert steps.line(20.0) == "measuring recipes: 0 of 88 in 20 s, at most 40 s left"
    steps.advance()
    assert steps.line(50.0) == "measuring recipes: 1 of 88 in 50 s, at most 10 s left"
    for _ in range(86):
        steps.advance()
    assert steps.line(58.0) == "measuring recipes: 87 of 88 in 58 s, about 1 s left"
    assert steps.line(70.0) == "measuring recipes: 87 of 88 in 70 s, at most 0 s left"


@pytest.mark.parametrize("limit", [math.inf, 240.0])
@pytest.mark.parametrize("width", [24, 32, 40, 60, 120])
def test_a_bar_fits_the_terminal(width: int, limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("evaluating", 1000, limit) as steps:
        steps.advance()
        steps.drawn.refresh()  # type: ignore[attr-defined]
    assert ("of 4 min" in terminal.getvalue()) == (width >= 60 and limit == 240.0)
    assert "1/1000" in terminal.getvalue() and "evaluating" in terminal.getvalue() and "…" not in terminal.getvalue()


def test_what_is_waited_for_stays_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    path = "/home/somebody/[models]/" + 20 * "deeper/" + "model.gguf"
    with output.waiting(f"loading {path}") as say:
        time.sleep(0.2)
        say(f"converting {path}, 123 of 456 MB")
        time.sleep(0.2)
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()))
    said = [line[2:].rstrip() for line in lines if len(line) > 2]
    assert {line.split(" ")[0] for line in said} == {"loading", "converting"}
    assert max(map(len, said)) == 78 and said[-1].endswith("model.gguf, 123 of 456 MB")


def test_a_line_that_is_too_long_loses_its_middle() -> None:
    assert output.fitted("abc", 3) == "abc"
    assert output.fitted("abcdefgh", 5) == "ab…gh"
    assert output.fitted("abcdefgh", 4) == "ab…h"
    assert [len(output.fitted(20 * "x", width)) for width in (1, 2, 19, 20, 21)] == [1, 2, 19, 20, 20]
