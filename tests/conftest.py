"""Fixtures that all tests share: the embedded models, and a cache directory of a test's own."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from thrifty.errors import DownloadError
from thrifty.models.embedded import MODELS, find
from thrifty.models.pull import pull


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: collections of garbage, which searches and measurements ask
    for, need not walk through it each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct: THRIFTY_MODELS, the user's cache, or fetched now."""
    return model_path("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """The GGUF file of Gemma-3-270M."""
    return model_path("gemma3-270m")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory, used instead of the user's."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("THRIFTY_CACHE", str(directory))
    return directory


def model_path(name: str) -> Path:
    """The file of an embedded model: THRIFTY_MODELS, the user's cache, or fetched now; skips where it cannot be."""
    try:
        return find(MODELS[name]) or pull(name)
    except DownloadError as error:
        pytest.skip(f"{name} is not here and cannot be fetched: {error}")
