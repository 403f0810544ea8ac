"""The policy of CONTRIBUTING.md, taken from the page: at most 40 lines, found by its file, conforming, tested."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tests.unit.cache import test_policy_conformance as conformance

import thrifty.cache.policies
from thrifty import registry

PAGE = Path(__file__).parents[3] / "CONTRIBUTING.md"
NAME = "example-of-the-page"
LINES = 40


def blocks() -> tuple[str, str]:
    """The policy's file and its test's, as the page has them."""
    text = PAGE.read_text()
    found = re.search(r"```python\n(# src/thrifty/cache/policies/.*?)(# tests/unit/cache/.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1], found[2]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The page's test as a module, its policy registered by its file alone."""
    policy, test = (block.replace('"knorm"', f'"{NAME}"') for block in blocks())
    module = NAME.replace("-", "_")
    (tmp_path / f"{module}.py").write_text(policy)
    (tmp_path / f"test_{module}.py").write_text(test)
    package = list(thrifty.cache.policies.__path__)
    monkeypatch.setattr(thrifty.cache.policies, "__path__", [*package, str(tmp_path)])
    monkeypatch.setattr(thrifty.cache.policies.__spec__, "submodule_search_locations", [*package, str(tmp_path)])
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module(f"test_{module}")
    for name in (f"test_{module}", f"thrifty.cache.policies.{module}"):
        sys.modules.pop(name, None)


def test_it_takes_at_most_forty_lines() -> None:
    lines = [line for block in blocks() for line in block.splitlines() if line.strip()]
    assert len(lines) <= LINES


def test_it_is_found_by_its_file_and_by_its_name(example: ModuleType) -> None:
    assert NAME in registry.names("cache")
    assert registry.load("cache", NAME).card.paper == "arXiv:2406.11430"  # type: ignore[attr-defined]


def test_its_own_test_passes(example: ModuleType) -> None:
    example.test_the_keys_of_least_norm_stay()


def test_its_own_test_can_fail(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = registry.load("cache", NAME).score  # type: ignore[attr-defined]
    monkeypatch.setattr(registry.load("cache", NAME), "score", lambda *given: -right(*given))
    with pytest.raises(AssertionError):
        example.test_the_keys_of_least_norm_stay()


def test_it_conforms(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conformance.SMALL, NAME, {"keep": 0.3})
    monkeypatch.setitem(conformance.WIDE, NAME, {"keep": 1.0})
    for shape in conformance.SHAPES:
        conformance.test_chunked_prefill_equals_whole([NAME], shape)
        conformance.test_a_fork_goes_on_as_its_parent([NAME], shape)
        conformance.test_a_prefix_hit_equals_no_hit([NAME], shape)
    conformance.test_bytes_stay_within_the_footprint_and_are_given_back([NAME], "windowed", 600, 80)
    conformance.test_a_prefix_hit_leaves_the_same_segments([NAME], 200)
    conformance.test_a_second_prompt_in_the_same_sequence([NAME])
    conformance.test_short_prompts([NAME, "kivi"], 65)
