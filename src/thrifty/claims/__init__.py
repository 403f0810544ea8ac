"""The papers' claims, checked here: one file a technique, found by its name; the machinery is in `harness/`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from thrifty.errors import RecipeError, nearest

if TYPE_CHECKING:
    from thrifty.claims.harness.claim import Claim


def names() -> list[str]:
    """The techniques that have a claim, sorted. Imports none of them."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def load(name: str) -> Claim:
    """The claim of one technique; imports only its module.

    Raises RecipeError with the nearest known name where there is none.
    """
    if name not in names():
        raise RecipeError(f"no claim is known of '{name[:80]}'. {nearest(name, names())}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    from thrifty.claims.harness.claim import Claim

    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Claim) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise RecipeError(f"{module.__name__} must define one claim; it defines {len(found)}")
    return found[0]()
