"""`thrifty bench`."""

from __future__ import annotations

EXAMPLE = "thrifty bench"


def command() -> None:
    """Placeholder."""
