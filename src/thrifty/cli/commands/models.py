"""`thrifty models`."""

from __future__ import annotations

EXAMPLE = "thrifty models"


def command() -> None:
    """Placeholder."""
