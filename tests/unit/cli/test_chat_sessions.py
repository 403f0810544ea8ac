"""`thrifty chat` with a recipe goes on from its compressed cache, unless told otherwise."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECIPE = '[[cache]]\ntechnique = "kivi"\nbits = 4\n'
LONG = "Tell me of the sea, of its ships and of those who sail on them. " * 3


def chat(
    thrifty: Callable[..., Any],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[str],
    *flags: str,
) -> list[dict[str, Any]]:
    """The answers to some lines."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    words = ("chat", checkpoint, "--recipe", recipe, "--max-tokens", 4, "--threads", 1, "--json", *flags)
    found = thrifty(*words)
    assert found.code == 0, found.message
    return [json.loads(line) for line in found.out.splitlines()]


def test_the_next_turn_goes_on_from_what_was_read_and_said(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = chat(thrifty, checkpoint, tmp_path, monkeypatch, [LONG, "And then?"])
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] >= first["prompt_tokens"]


def test_without_a_session_every_turn_is_read_whole(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = chat(thrifty, checkpoint, tmp_path, monkeypatch, [LONG, "And then?"], "--no-session")
    assert [answer["cached_tokens"] for answer in answers] == [0, 0]


@pytest.mark.parametrize("command", ["/clear", "/undo"])
def test_what_is_forgotten_is_not_gone_on_from(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    lines = [LONG, command, "Something else.", "And then?"]
    _, anew, on = chat(thrifty, checkpoint, tmp_path, monkeypatch, lines)
    assert anew["cached_tokens"] == 0
    assert on["cached_tokens"] >= anew["prompt_tokens"]
