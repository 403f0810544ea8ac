"""What a load test raises."""

from __future__ import annotations

from thrifty.errors import ThriftyError


class LoadError(ThriftyError):
    """A load test cannot run as it was asked for; the message says what to change."""
