"""Models of conversations: with and without windows."""

from __future__ import annotations

import pytest
from tests.tiny import tiny_model

from thrifty.kernels import dispatch
from thrifty.models.model import Model


@pytest.fixture(scope="module", params=["global", pytest.param("windowed", marks=pytest.mark.long)])
def model(request: pytest.FixtureRequest) -> Model:
    """Packed, so that native code runs it."""
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    return tiny_model(packed=True, windows=(100, None, 100, None) if request.param == "windowed" else ())
