"""`thrifty fit`."""

from __future__ import annotations

EXAMPLE = "thrifty fit"


def command() -> None:
    """Placeholder."""
