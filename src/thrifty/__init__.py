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
    from thrifty.decoding.sampling_parameters import SamplingParameters
    from thrifty.engine.api import Thrifty
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
]

_HOMES = {
    "AsyncEngine": "thrifty.engine.asynchronous",
    "Embeddings": "thrifty.engine.media",
    "Engine": "thrifty.engine.engine",
    "Event": "thrifty.engine.request",
    "Handle": "thrifty.engine.request",
    "Recipe": "thrifty.recipe",
    "Request": "thrifty.engine.request",
    "Result": "thrifty.engine.request",
    "SamplingParameters": "thrifty.decoding.sampling_parameters",
    "Thrifty": "thrifty.engine.api",
    "ThriftyError": "thrifty.errors",
    "ThriftyWarning": "thrifty.errors",
    "load": "thrifty.models",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'thrifty' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
