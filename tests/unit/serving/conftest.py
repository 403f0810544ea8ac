"""Servers over a tiny model, one for each module that asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.serving.live import Live, SlowEngine, live, tiny_engine
from tests.unit.serving.tool_models import tool_engine

from thrifty.kernels import dispatch


@pytest.fixture(scope="module", autouse=True)
def _native() -> None:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """Open to everybody."""
    with live() as running:
        yield running


@pytest.fixture(scope="module")
def slow_server() -> Iterator[Live]:
    """10 ms a token more, and a comment after 50 ms of silence."""
    with live(lambda: tiny_engine(SlowEngine), keep_alive_seconds=0.05) as running:
        yield running


@pytest.fixture(scope="module", params=("hermes", "mistral", "llama"))
def any_server(request: pytest.FixtureRequest) -> Iterator[Live]:
    """Of a model that knows tools, in each format of calls."""
    with live(lambda: tool_engine(request.param)) as running:
        yield running


@pytest.fixture(scope="module")
def hermes() -> Iterator[Live]:
    """Of a model that knows tools in Hermes' format."""
    with live(lambda: tool_engine("hermes")) as running:
        yield running
