"""`thrifty pull`."""

from __future__ import annotations

EXAMPLE = "thrifty pull"


def command() -> None:
    """Placeholder."""
