"""What all tests share: the embedded models, a cache directory of a test's own, and how long a quick test may take."""

from __future__ import annotations

import gc
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.tiers import too_long

from thrifty.errors import DownloadError
from thrifty.models.embedded import MODELS, find
from thrifty.models.pull import pull


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: collections of garbage, which searches and measurements ask
    for, need not walk through it each time.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A test that takes seconds is marked so, and fails where it is not. What its fixtures take does not count."""
    began = time.process_time()
    result = yield
    if why := too_long((mark.name for mark in pyfuncitem.iter_markers()), time.process_time() - began):
        pytest.fail(why, pytrace=False)
    return result


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
