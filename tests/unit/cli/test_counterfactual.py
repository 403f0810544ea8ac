"""`thrifty counterfactual` on a tiny checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_two_answers_by_the_same_noise(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    words = ("counterfactual", checkpoint, "Hello there", "--max-tokens", 12, "--threads", 1, "--json", "--seed", 3)
    same = thrifty(*words, "--edited", "Hello there").json()
    assert same["factual"] == same["counterfactual"] and same["differs"] is None
    ids = same["factual"]["token_ids"]
    other = thrifty(*words, "--replace", "4=z").json()
    told = other["counterfactual"]["token_ids"]
    assert other["factual"]["token_ids"] == ids and told[:4] == ids[:4] and other["differs"] in (4, None)
    text = tmp_path / "observed.txt"
    text.write_text("seen")
    seen = thrifty(*words, "--observed", text, "--edited", "Good bye").json()
    assert seen["factual"]["text"].startswith("seen")


def test_mistakes_are_named(thrifty: Callable[..., Any], checkpoint: Path) -> None:
    words = ("counterfactual", checkpoint, "Hello", "--threads", 1, "--max-tokens", 4)
    assert "nothing is changed" in thrifty(*words).message
    assert "is no PLACE=TEXT" in thrifty(*words, "--replace", "z").message
    assert "a text of 2 tokens" in thrifty(*words, "--replace", "1=ab").message
    assert "the prompt is empty" in thrifty(*words, "--edited", " ").message
