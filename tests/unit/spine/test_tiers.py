"""A test that takes long says so."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from tests import tiers

ROOT = Path(__file__).parents[3]


def test_a_quick_test_may_take_what_it_likes_within_the_bound() -> None:
    assert tiers.too_long((), tiers.MOST) is None and tiers.too_long(("parametrize",), 0.0) is None


def test_a_long_one_without_a_mark_is_told_how_much_and_what_to_do() -> None:
    message = tiers.too_long(("parametrize", "timeout"), 12.34)
    assert message is not None and "took 12.3 s of CPU" in message and "at most 10" in message
    assert "mark it `long`" in message


@pytest.mark.parametrize("mark", sorted(tiers.MARKS))
def test_a_marked_one_may_take_longer(mark: str) -> None:
    assert tiers.too_long(("parametrize", mark), 100.0) is None


def test_make_unit_leaves_out_what_is_marked_and_nothing_else() -> None:
    command = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "THRIFTY_FEW_EXAMPLES" in line)
    chosen = command.partition('-m "')[2].rstrip('"')
    assert set(chosen.replace("not ", "").split(" and ")) == tiers.MARKS
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert {mark.partition(":")[0] for mark in options["markers"]} == tiers.MARKS
