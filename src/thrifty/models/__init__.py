"""Models: checkpoints, the parts of a decoder, tokens.

Names are imported when they are first used, so that a look at the catalogue imports little.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thrifty.models.config.model_config import ModelConfig
    from thrifty.models.loading import load
    from thrifty.models.model import Model

__all__ = ["Model", "ModelConfig", "load"]

_HOMES = {
    "Model": "thrifty.models.model",
    "ModelConfig": "thrifty.models.config.model_config",
    "load": "thrifty.models.loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'thrifty.models' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
