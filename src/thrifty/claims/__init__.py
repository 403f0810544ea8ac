"""The papers' claims, checked here: one file a technique, found by its name; the machinery is in `harness/`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thrifty import registry
from thrifty.errors import RecipeError, nearest

if TYPE_CHECKING:
    from thrifty.claims.harness.claim import Claim


def names() -> list[str]:
    """The techniques that have a claim, sorted. Imports none of them."""
    return sorted(registry.found(__path__))


def load(name: str) -> Claim:
    """The claim of one technique; imports only its module.

    Raises RecipeError with the nearest known name where there is none.
    """
    modules = registry.found(__path__)
    if name not in modules:
        raise RecipeError(f"no claim is known of '{name[:80]}'. {nearest(name, modules)}")
    from thrifty.claims.harness.claim import Claim

    made: Claim = registry.only(f"{__name__}.{modules[name]}", lambda cls: issubclass(cls, Claim), "claim")()
    return made
