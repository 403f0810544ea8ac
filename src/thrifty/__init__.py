"""Thrifty: a memory-budgeted inference engine for open language models.

    from thrifty import Thrifty
    print(Thrifty("smollm2-135m").generate("The capital of France is").text)

Names are imported when they are first used: `import thrifty` alone imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from thrifty.version import VERSION

if TYPE_CHECKING:
    from thrifty.api import Thrifty, open_engine, open_model
    from thrifty.decoding.sampling_parameters import SamplingParameters
    from thrifty.engine.async_handle import AsyncHandle
    from thrifty.engine.asynchronous import AsyncEngine
    from thrifty.engine.engine import Engine
    from thrifty.engine.media import Embeddings
    from thrifty.engine.request import Event, Handle, Request, Result
    from thrifty.errors import ThriftyError, ThriftyWarning
    from thrifty.models import load
    from thrifty.recipe import Recipe

__version__ = VERSION

__all__ = [
    "AsyncEngine",
    "AsyncHandle",
    "Embeddings",
    "Engine",
    "Event",
    "Handle",
    "Recipe",
    "Request",
    "Result",
    "SamplingParameters",
    "Thrifty",
    "ThriftyError",
    "ThriftyWarning",
    "load",
    "open_engine",
    "open_model",
]

_HOMES = {
    "AsyncEngine": "thrifty.engine.asynchronous",
    "AsyncHandle": "thrifty.engine.async_handle",
    "Embeddings": "thrifty.engine.media",
    "Engine": "thrifty.engine.engine",
    "Event": "thrifty.engine.request",
    "Handle": "thrifty.engine.request",
    "Recipe": "thrifty.recipe",
    "Request": "thrifty.engine.request",
    "Result": "thrifty.engine.request",
    "SamplingParameters": "thrifty.decoding.sampling_parameters",
    "Thrifty": "thrifty.api",
    "ThriftyError": "thrifty.errors",
    "ThriftyWarning": "thrifty.errors",
    "load": "thrifty.models",
    "open_engine": "thrifty.api",
    "open_model": "thrifty.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'thrifty' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
