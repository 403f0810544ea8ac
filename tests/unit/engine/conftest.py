"""Engines over tiny models, and the kinds of path that a request can take through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.tiny import hybrid_config, tiny_model

from thrifty.engine.engine import Engine
from thrifty.kernels import dispatch
from thrifty.models.model import Model

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def plain() -> Model:
    """fp32: the reference path."""
    return tiny_model()


@pytest.fixture(scope="session")
def packed() -> Model:
    """int4 layers and an int8 embedding: the native path where it is built."""
    return tiny_model(packed=True)


@pytest.fixture(scope="session")
def windowed() -> Model:
    """Local and global layers in turn, packed."""
    return tiny_model(packed=True, windows=(100, None, 100, None), seed=1)


@pytest.fixture(scope="session")
def hybrid() -> Model:
    """Recurrent, global and local layers, packed."""
    return tiny_model(packed=True, config=hybrid_config("rawr"), seed=2)


REFERENCE = pytest.param("plain", marks=pytest.mark.long)
"""An order slower than native code: `make test` takes every test of an engine through it, `make unit` those alone that
ask for it.
"""


HYBRID = pytest.param("hybrid", marks=pytest.mark.long)
"""Recurrent layers have tests of their own in `make unit` (test_hybrid.py)."""


@pytest.fixture(params=[REFERENCE, "packed", "windowed", HYBRID])
def model(request: pytest.FixtureRequest) -> Model:
    """Each kind of model; the packed ones run natively."""
    if request.param != "plain" and dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    model: Model = request.getfixturevalue(request.param)
    return model


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    """Engines that are closed at the end; on closing nothing but the weights may be left. Plain models run by the
    reference.
    """
    engines: list[Engine] = []

    def make(model: Model, **options: Any) -> Engine:
        if all(linear.label == "f32" for linear in model.linears.values()):
            options.setdefault("native", False)
        engines.append(Engine(model, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
        ledger = engine.memory.ledger
        assert ledger.current == ledger.bytes_of("weights"), ledger.categories()
