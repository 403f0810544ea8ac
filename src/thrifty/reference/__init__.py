"""The reference: every model in plain torch, over the arrays that the engine's kernels read.

    from thrifty import reference
    logits = reference.load("smollm2-135m").logits([1, 2, 3])

The one room that needs torch, the extra `torch`. Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thrifty.extras import require_torch

if TYPE_CHECKING:
    from thrifty.reference.loading import ReferenceModel, build, load

__all__ = ["ReferenceModel", "build", "load"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562). Raises MissingExtra where torch is not installed."""
    if name not in __all__:
        raise AttributeError(f"module 'thrifty.reference' has no attribute '{name}'")
    require_torch("thrifty.reference")
    from thrifty.reference import loading

    return getattr(loading, name)
