"""`thrifty doctor`."""

from __future__ import annotations

EXAMPLE = "thrifty doctor"


def command() -> None:
    """Placeholder."""
